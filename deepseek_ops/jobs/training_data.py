"""The inputs of a plan on this machine: checked out once per node, complete or not there."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.records import DatasetVersion, FileSet, TrainingPlan
from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.conversations import CONVERSATIONS

TOKENS = "tokens"
DOCUMENTS = "documents"
TOKENIZER = "tokenizer"
_TOKENIZER_FILE = "tokenizer.json"


@dataclass(eq=False)
class TokenizerMismatchError(PermanentError):
    """Two inputs of one training number their tokens differently."""

    dataset: str
    other: str

    def __str__(self) -> str:
        return (
            f"dataset {self.dataset} is tokenised differently from {self.other}, so its token ids mean something else "
            "there; prepare it with that tokenizer (data.tokenizer)."
        )


@dataclass(frozen=True, slots=True)
class Inputs:
    """Where this node keeps a plan's inputs."""

    dataset: Path
    base: Path | None = None
    old: tuple[Path, ...] = ()
    """The dataset versions that are replayed."""


def fetch_inputs(context: JobContext, plan: TrainingPlan) -> Inputs:
    """Return the plan's inputs below the job's work folder, fetched if they are not there yet.

    Raises TokenizerMismatchError when the data, the base and replayed data do not share one tokenizer.
    """
    base = local_files(context, plan.base, "base") if plan.base is not None else None
    folders = {"pretrain": (TOKENS,), "sft": (CONVERSATIONS,), "lora": (CONVERSATIONS, TOKENS)}[plan.method]
    dataset = local_dataset(context, plan.dataset, *folders, TOKENIZER)
    old = {
        f"{version.name} {version.version[:12]}": local_dataset(context, version, *folders, TOKENIZER)
        for version in (plan.replay.datasets if plan.replay is not None else ())
    }
    others = {
        **{name: folder / TOKENIZER for name, folder in old.items()},
        **({"the base model": base} if base else {}),
    }
    mine = _numbering(dataset / TOKENIZER)
    for name, folder in others.items():
        if (folder / _TOKENIZER_FILE).is_file() and _numbering(folder) != mine:
            raise TokenizerMismatchError(f"{plan.dataset.name} {plan.dataset.version[:12]}", name)
    return Inputs(dataset, base, tuple(old.values()))


def _numbering(folder: Path) -> list[JsonValue]:
    """Return what decides which number stands for which text."""
    content = json.loads((folder / _TOKENIZER_FILE).read_text(encoding="utf-8"))
    return [content.get(key) for key in ("model", "added_tokens", "pre_tokenizer", "normalizer")]


def document_files(folder: Path, split: str) -> list[Path]:
    """Return the files that hold the documents of a split, in order; empty when there are none."""
    first = folder / DOCUMENTS / f"{split}.jsonl"
    return [path for path in (first, *sorted((folder / DOCUMENTS).glob(f"{split}-[0-9]*.jsonl"))) if path.is_file()]


def local_dataset(context: JobContext, dataset: DatasetVersion, *folders: str) -> Path:
    """Return the folder of the version's ``folders`` below the job's work folder, fetched if it is not there yet.

    Files come from this machine's cache where ``$DEEPSEEK_OPS_CACHE`` names one. A folder that is there and is not this
    version, or was changed since, is refused: DatasetMismatchError, DatasetChangedError.
    """
    from deepseek_ops.data import ObjectCache, Worktree, materialise, require_version

    target = context.work / "-".join(["dataset", dataset.version[:16], *folders])
    if not Worktree(target).exists:
        patterns = tuple(f"{folder}/*" for folder in folders)
        cache = ObjectCache.from_environment(os.environ)
        materialise(context.store, dataset.version, target, cache=cache, patterns=patterns)
    require_version(target, dataset)
    return target


def local_files(context: JobContext, files: FileSet, name: str) -> Path:
    """Return the folder of a file set below the job's work folder, fetched and verified if it is not there yet."""
    return fetched_once(
        context.work / f"{name}-{files.fingerprint[:16]}", lambda target: context.blobs.fetch_folder(files, target)
    )


def fetched_once(folder: Path, fetch: Callable[[Path], None]) -> Path:
    """Return ``folder``, filled by ``fetch`` if it does not exist; a fetch that was killed leaves only a partial."""
    if not folder.is_dir():
        partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
        for leftover in folder.parent.glob(f"{folder.name}.partial-*"):
            shutil.rmtree(leftover)
        fetch(partial)
        partial.rename(folder)
    return folder
