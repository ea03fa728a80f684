"""How data and environment moved between two results: files and records, lock files and installed packages."""

from __future__ import annotations

from pydantic import JsonValue

from deepseek_ops.core.errors import DeepSeekOpsError
from deepseek_ops.data.trees import DatasetDiff
from deepseek_ops.pipeline.environment_records import (
    EnvironmentDiff,
    environment_diff,
    load_environment,
)
from deepseek_ops.pipeline.lineage_made_of import trained_with
from deepseek_ops.pipeline.lineage_moves import Move, both_files, unified
from deepseek_ops.pipeline.lineage_sources import Sources
from deepseek_ops.pipeline.lineage_subject import Subject

MAX_RECORD_BYTES = 256 << 20
"""Of files that differ, beyond which records are not compared: the command for it is named instead."""
_PATHS = 20


def data_move(sources: Sources, old: Subject, new: Subject, *, code_moved: bool) -> Move:
    """Return how the data moved: files, records, and whether it only followed the code that prepares it."""
    names = [subject.manifest.dataset if subject.manifest else "" for subject in (old, new)]
    if names[0] == names[1]:
        return Move(part="data", moved=False, old=names[0], new=names[1], summary="the same version")
    try:
        changed = sources.datasets.diff(*names)
    except DeepSeekOpsError as error:
        summary = f"the versions differ; in what cannot be said: {error}"
        return Move(part="data", moved=True, old=names[0], new=names[1], summary=summary)
    kinds = {"added": changed.added, "removed": changed.removed, "modified": changed.modified}
    counts = ", ".join(f"{len(paths)} {kind}" for kind, paths in kinds.items())
    records, summary = _records(sources, names[0], names[1], changed)
    followed = code_moved and _only_prepared_otherwise(sources, names[0], names[1])
    return Move(
        part="data",
        moved=bool(changed),
        old=names[0],
        new=names[1],
        summary=f"files {counts}; {summary}" if changed else "another version with the same files",
        details={"files": {kind: list(paths[:_PATHS]) for kind, paths in kinds.items()}, "records": records},
        follows="code" if followed else "",
    )


def environment_move(sources: Sources, old: Subject, new: Subject) -> Move:
    """Return how the environment moved: its key, the lock's lines, and the packages that were really installed."""
    keys = [subject.manifest.environment if subject.manifest else "" for subject in (old, new)]
    found = _installed(sources, old, new)
    text, cut = _locks(sources, old, new) if keys[0] != keys[1] else ([], 0)
    if found is None:
        summary = "the same key" if keys[0] == keys[1] else "another key"
        return Move(
            part="environment",
            moved=keys[0] != keys[1],
            old=keys[0],
            new=keys[1],
            summary=f"{summary}; the installed packages were not recorded for both",
            text=tuple(text),
            cut=cut,
        )
    lines = found.lines()
    moved = bool(found.changed or found.added or found.removed or found.machine) or keys[0] != keys[1]
    return Move(
        part="environment",
        moved=moved,
        old=keys[0],
        new=keys[1],
        summary=f"{len(lines)} differences of what was installed: {'; '.join(lines[:3])}"
        if lines
        else "the same packages",
        details={"installed": found.model_dump(mode="json")},
        text=(*text, *lines[:50]),
        cut=cut + max(len(lines) - 50, 0),
    )


def _records(sources: Sources, old: str, new: str, changed: DatasetDiff) -> tuple[JsonValue, str]:
    """Return the comparison record by record, or why there is none."""
    command = f"deepseek-ops data diff --records {old[:12]} {new[:12]}"
    try:
        size = _bytes_of(sources, old, (*changed.removed, *changed.modified))
        size += _bytes_of(sources, new, (*changed.added, *changed.modified))
        if size > MAX_RECORD_BYTES:
            return None, f"records were not compared ({size} bytes differ): {command}"
        from deepseek_ops.data.content.record_diff import DiffOptions, record_diff

        found = record_diff(sources.datasets, old, new, DiffOptions(languages=False, examples=2))
    except DeepSeekOpsError as error:
        return None, f"records were not compared: {error}"
    total = {
        kind: sum(getattr(split, kind).records for split in found.splits.values())
        for kind in ("added", "removed", "changed")
    }
    words = ", ".join(f"{count} {kind}" for kind, count in total.items())
    return found.dump(), f"records {words}"


def _bytes_of(sources: Sources, version: str, paths: tuple[str, ...]) -> int:
    wanted = set(paths)
    files = sources.datasets.files(version) if wanted else []
    return sum(file.entry.size for file in files if file.entry.path in wanted)


def _only_prepared_otherwise(sources: Sources, old: str, new: str) -> bool:
    """Return whether both versions were made from the same raw data, by different code."""
    made = [sources.datasets.describe(version).get("lineage") for version in (old, new)]
    before, after = (one if isinstance(one, dict) else {} for one in made)
    return bool(before.get("raw")) and before.get("raw") == after.get("raw") and before.get("code") != after.get("code")


def _installed(sources: Sources, old: Subject, new: Subject) -> EnvironmentDiff | None:
    digests = [trained_with(sources, subject.run) for subject in (old, new)]
    if not all(digests):
        return None
    try:
        return environment_diff(*(load_environment(sources.stores.blobs, digest) for digest in digests))
    except DeepSeekOpsError as error:
        sources.say(str(error))
        return None


def _locks(sources: Sources, old: Subject, new: Subject) -> tuple[list[str], int]:
    files = both_files(sources, old, new)
    locks = {subject.evidence.lock for subject in (old, new) if subject.evidence and subject.evidence.lock}
    return unified(files, sorted(locks)) if files else ([], 0)
