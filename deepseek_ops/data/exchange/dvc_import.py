"""DVC folders as versions: one, or every state that a Git history of a ``.dvc`` file names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from pydantic import JsonValue

from deepseek_ops.core.ports import Progress
from deepseek_ops.core.records import DatasetVersion, Digest
from deepseek_ops.data.committing import read_commit
from deepseek_ops.data.exchange.dvc_files import DvcObjects, DvcOut, read_dvc_file
from deepseek_ops.data.exchange.intake import Arriving, Origin, commit_arriving
from deepseek_ops.data.exchange.ordered import pages_of
from deepseek_ops.data.exchange.paths import PathGate
from deepseek_ops.data.pages import Location
from deepseek_ops.data.refs import RefLog
from deepseek_ops.data.repository import DatasetRepository
from deepseek_ops.data.snapshot import SplitOf, no_split

LINEAGE = "imported"
Known = dict[str, tuple[bytes, int, Location]]
"""MD5 -> SHA-256, size and place of content that the store has."""


@dataclass(frozen=True, slots=True)
class DvcSource:
    """Where a DVC folder comes from and how its paths are taken."""

    objects: DvcObjects
    file: str
    """What errors and lineage call the .dvc file."""
    split_of: SplitOf = no_split
    case_sensitive: bool = False


@dataclass(frozen=True, slots=True)
class DvcRevision:
    """A .dvc file as one commit of Git has it."""

    commit: str
    author: str
    at: str
    """ISO 8601."""
    subject: str
    text: str


def import_dvc(
    repository: DatasetRepository, source: DvcSource, text: str, origin: Origin, *, progress: Progress | None = None
) -> DatasetVersion:
    """Make what a .dvc file names the newest version of a branch; content that the branch has is not read again.

    Raises ConfigError, DvcObjectMissingError, IntegrityError, RefusedMemberError; no version appears then.
    """
    objects, file = source.objects, source.file
    outs = read_dvc_file(text, file=file)
    gate = PathGate(file, case_sensitive=source.case_sensitive)
    known = _known(repository, objects, origin, file)

    def arriving() -> Iterator[Arriving]:
        for out in outs:
            for path, md5 in objects.folder(out, file=file):
                inside = path if len(outs) == 1 or not out.is_folder else f"{out.path}/{path}"
                name = gate.admit(inside)
                read = _reader(objects, md5, name, legacy=out.legacy)
                yield Arriving(name, read, source.split_of(name), known.get(md5))

    made: dict[str, JsonValue] = {"kind": "dvc", "outs": [_out_body(out) for out in outs]}
    before = (origin.lineage or {}).get(LINEAGE)
    lineage = {**(origin.lineage or {}), LINEAGE: {**made, **(before if isinstance(before, dict) else {})}}
    return commit_arriving(repository, arriving(), replace(origin, lineage=lineage), source=file, progress=progress)


def import_dvc_history(
    repository: DatasetRepository,
    source: DvcSource,
    revisions: Sequence[DvcRevision],
    origin: Origin,
    *,
    progress: Progress | None = None,
) -> list[DatasetVersion]:
    """Make a version of each revision, oldest first, and return those made now.

    It goes on after the newest revision that the branch has, so a second call makes nothing and a killed one is
    continued. Author, time and commit of each revision are in the version's lineage.
    """
    made: list[DatasetVersion] = []
    start = _continue_at(repository, revisions, origin)
    for number, revision in enumerate(revisions[start:], start=start + 1):
        if progress is not None:
            progress(f"revision {number} of {len(revisions)}: {revision.commit[:12]} {revision.subject}", None)
        git: JsonValue = {"commit": revision.commit, "path": source.file, "at": revision.at}
        single = replace(
            origin,
            message=revision.subject or origin.message,
            author=revision.author or origin.author,
            lineage={**(origin.lineage or {}), LINEAGE: {"git": git}},
        )
        made.append(import_dvc(repository, source, revision.text, single, progress=progress))
    return made


def _reader(objects: DvcObjects, md5: str, path: str, *, legacy: bool) -> Callable[[], Iterator[bytes]]:
    return lambda: objects.read(md5, path, legacy=legacy)


def _out_body(out: DvcOut) -> JsonValue:
    return {"md5": out.md5, "path": out.path, "folder": out.is_folder, "legacy": out.legacy}


def _imported(repository: DatasetRepository, version: Digest) -> dict[str, JsonValue]:
    lineage = read_commit(repository.store, version).get("lineage")
    found = lineage.get(LINEAGE) if isinstance(lineage, dict) else None
    return found if isinstance(found, dict) else {}


def _known(repository: DatasetRepository, objects: DvcObjects, origin: Origin, file: str) -> Known:
    """Return what the branch's newest version, if it was imported from DVC, tells about content by MD5."""
    head = RefLog(repository.store, origin.name, origin.branch).head()
    outs = _imported(repository, head.version).get("outs") if head is not None else None
    if head is None or not isinstance(outs, list) or len(outs) != 1 or not isinstance(outs[0], dict):
        return {}
    out = DvcOut(str(outs[0]["md5"]), str(outs[0]["path"]), bool(outs[0]["folder"]), legacy=bool(outs[0]["legacy"]))
    md5_of = {path.removeprefix("./"): md5 for path, md5 in objects.folder(out, file=file)}
    known: Known = {}
    for _, files in pages_of(repository.tree(head.version)):
        for entry, location in files:
            if md5 := md5_of.get(entry.path):
                known[md5] = (entry.digest, entry.size, location)
    return known


def _continue_at(repository: DatasetRepository, revisions: Sequence[DvcRevision], origin: Origin) -> int:
    places = {revision.commit: number for number, revision in enumerate(revisions)}
    for entry in RefLog(repository.store, origin.name, origin.branch).entries():
        git = _imported(repository, entry.version).get("git")
        if isinstance(git, dict) and git.get("commit") in places:
            return places[str(git["commit"])] + 1
    return 0
