"""One commit, one data version: which data a run of a commit gets, and when it refuses.

A commit that holds ``data/<dataset>.dataset.yaml`` names a version. Whoever runs that commit, whenever, shall train on
the same data, however much has arrived in the lake since:

* a version that was prepared pins the *raw* version it was made from: preparation runs on that, and finds its earlier
  result when code and settings are the same;
* a version that was imported, or committed by hand, is used as it is;
* runs that new data or a schedule started ask for what is newest: the pointer does not bind them, the commit that
  records their result moves it.

What comes out is held against the pointer. Other bytes from the same preparation and the same raw data mean that
preparation is not a function of its input, or that a version was altered: the run refuses. Where the commit changed
its preparation since the pointer was written, the new version is what it asks for; ``data.pin: require`` refuses that
too, ``data.pin: newest`` ignores pointers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from deepseek_ops.core.config import PipelineFile
from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.ports import Blobs
from deepseek_ops.core.records import DatasetVersion
from deepseek_ops.data import DatasetPointer, DatasetRepository, pointer_path, read_pointer
from deepseek_ops.data.guard import require_pointed
from deepseek_ops.pipeline.runs import RunPlan, code_of

_PREPARATION = ("callable", "code", "parameters", "split", "raw")
"""Parts of a version's lineage that say how it was made."""


@dataclass(eq=False)
class PointerMissingError(PermanentError):
    """The pipeline file asks for the version that the commit names, and it names none."""

    commit: str
    file: str

    def __str__(self) -> str:
        return (
            f"data.pin is `require`, but commit {self.commit[:12]} has no {self.file}; write one with "
            "`deepseek-ops data commit --pointer`, or let `data.pin` be `commit`."
        )


@dataclass(frozen=True, slots=True)
class Pinned:
    """The version that a run's commit names."""

    pointer: DatasetPointer
    version: DatasetVersion
    raw: DatasetVersion | None
    """What it was prepared from; None for a version that was imported or committed by hand."""
    made_by: Mapping[str, JsonValue]
    """The part of its lineage that says how it was made."""


def pinned(
    config: PipelineFile, run: RunPlan, blobs: Blobs, datasets: DatasetRepository, *, newest: bool
) -> Pinned | None:
    """Return the version that binds this run, or None when nothing does; ``newest`` says that it asks for new data.

    Raises PointerMissingError, ConfigError for a pointer that cannot be read, VersionNotFoundError.
    """
    if config.data.pin == "newest" or (newest and config.data.pin == "commit"):
        return None
    file = pointer_path(config.data.dataset)
    entry = next((one for one in code_of(blobs, run).files if one.path == file), None)
    if entry is None:
        if config.data.pin == "require":
            raise PointerMissingError(run.manifest.source.commit, file)
        return None
    pointer = read_pointer(blobs.get(entry.digest).decode(errors="replace"), file=file)
    made_by = _made_by(datasets, pointer.version)
    raw = made_by.get("raw")
    version = str(raw["version"]) if isinstance(raw, dict) and "version" in raw else ""
    return Pinned(
        pointer=pointer,
        version=datasets.load(pointer.version),
        raw=datasets.load(version) if version else None,
        made_by=made_by,
    )


def is_used_as_it_is(config: PipelineFile, pin: Pinned) -> bool:
    """Return whether the named version needs no preparation: nobody prepared it, and the commit says not how to."""
    return not pin.made_by and not config.data.raw


def held_to(
    config: PipelineFile, run: RunPlan, pin: Pinned, made: DatasetVersion, datasets: DatasetRepository
) -> tuple[DatasetVersion, str]:
    """Return the version the run goes on with, and a line that says why it is another one than the commit's, if so.

    Equal files are the commit's version, also where a later commit of the dataset holds them too. Raises
    DatasetMismatchError with both ids and the command that shows the change.
    """
    if made.tree == pin.version.tree:
        return pin.version, ""
    commit = run.manifest.source.commit
    ours = _made_by(datasets, made.version)
    moved = [part for part in _PREPARATION if ours.get(part) != pin.made_by.get(part)]
    if config.data.pin == "require" or not moved:
        require_pointed(made, pin.pointer, commit=commit)
    why = f"{', '.join(moved)} of its preparation moved since" if pin.made_by else "it was not prepared by a run"
    return made, (
        f"commit {commit[:12]} names version {pin.version.version[:12]} of {made.name}; {why}, so this run made "
        f"{made.version[:12]}"
    )


def _made_by(datasets: DatasetRepository, version: str) -> dict[str, JsonValue]:
    lineage = datasets.describe(version).get("lineage")
    return {key: lineage[key] for key in _PREPARATION if key in lineage} if isinstance(lineage, dict) else {}
