"""The dataset of a plan on this machine: checked out once per node, complete or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from deepseek_ops.core.records import DatasetVersion, FileSet
from deepseek_ops.jobs.context import JobContext

TOKENS = "tokens"
DOCUMENTS = "documents"
TOKENIZER = "tokenizer"


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
