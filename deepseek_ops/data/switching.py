"""A working folder goes from one version to another in place, writing only the files that differ.

First every new file is fetched and verified below ``.deepseek-ops/switch/``; then a journal says what is to be moved
and removed; then that is done. Until the journal is there nothing in the folder has changed, and the next command
throws the fetched files away. From then on the next command finishes what the journal says, without the network. Each
file is replaced by a rename, so nobody ever reads a part of one.

Changes that were not committed are never overwritten unasked: those that the switch would touch are all listed, and the
others stay. What somebody writes between a kill and the next command is moved to ``.deepseek-ops/rescued/``.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import translate
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from deepseek_ops.core.errors import InvalidRecordError, PermanentError
from deepseek_ops.core.ports import ObjectStore, Progress
from deepseek_ops.core.records import Digest, Record, canonical_json
from deepseek_ops.data.blobs import hash_file
from deepseek_ops.data.checkout import NothingSelectedError, write_folder
from deepseek_ops.data.collisions import require_distinct
from deepseek_ops.data.folders import check_plain, checked_targets, local_error
from deepseek_ops.data.history import read_commit
from deepseek_ops.data.packs import Stored, stored_files
from deepseek_ops.data.pages import Entry
from deepseek_ops.data.trees import Tree
from deepseek_ops.data.worktree import JOURNAL, UNKNOWN, Index, Status, Worktree, WorktreeRecord, known_files

STAGE = "switch"
RESCUED = "rescued"
SHOWN = 20
_Stat = tuple[int, int, int]


@dataclass(eq=False)
class UncommittedChangesError(PermanentError):
    """A switch would overwrite what was changed and not committed."""

    folder: str
    paths: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"{self.folder} has changes that this would overwrite:"]
        lines += [f"  {path}" for path in self.paths[:SHOWN]]
        if len(self.paths) > SHOWN:
            lines.append(f"  and {len(self.paths) - SHOWN} more files")
        lines.append("Commit them with `data commit`, move them away, or give them up with --force.")
        return "\n".join(lines)


class Step(Record):
    """One file to replace or to remove."""

    path: str
    digest: Digest | None = Field(default=None, description="Of the file that is to be there; absent to remove it.")
    size: int = 0
    split: str = ""
    before: _Stat | None = Field(default=None, description="Size, mtime and inode of what was there; absent for none.")
    after: _Stat | None = Field(default=None, description="The same of what is to be there.")

    def entry(self) -> Entry:
        """Return the file that is to be there."""
        return Entry(self.path, self.size, bytes.fromhex(self.digest or ""), self.split)


class Journal(Record):
    """A switch that has begun: removals first, then files to move into place."""

    record: WorktreeRecord
    steps: tuple[Step, ...]
    kept: tuple[Step, ...] = Field(default=(), description="Files that are there already.")


@dataclass(frozen=True, slots=True)
class Switched:
    """What a switch did."""

    version: str
    written: int
    removed: int
    kept: tuple[str, ...]
    """Changes that were not committed and still are not."""


def recover(worktree: Worktree) -> bool:
    """Finish a switch that was interrupted, or throw away what it had fetched; return whether files were changed.

    Call it locked, before anything else.
    """
    try:
        data = (worktree.own / JOURNAL).read_bytes()
    except FileNotFoundError:
        shutil.rmtree(worktree.own / STAGE, ignore_errors=True)
        return False
    except OSError as error:
        raise local_error(worktree.own / JOURNAL, error) from error
    try:
        body = json.loads(data)
    except ValueError:
        raise InvalidRecordError("journal", f"{worktree.own / JOURNAL} is not JSON") from None
    carry_out(worktree, Journal.load(body))
    return True


def switch(
    store: ObjectStore,
    worktree: Worktree,
    record: WorktreeRecord,
    *,
    force: bool = False,
    workers: int = 8,
    progress: Progress | None = None,
) -> Switched:
    """Make the folder what ``record`` says and return what was done. Call it locked, after ``recover``.

    ``force`` gives up changes to files of either version; files that are in neither stay unless they are in the way.
    Raises UncommittedChangesError with every path, NothingSelectedError, UnsafeTargetError, IntegrityError.
    """
    status, index = worktree.status(), worktree.index()
    wanted = _wanted(store, worktree.record(), record, index, status, force=force)
    plan = _plan(worktree, index, wanted, set(status.paths), force=force)
    touched = {step.path for step in plan.steps}
    in_the_way = _in_the_way(status, plan.steps)
    if in_the_way and not force:
        raise UncommittedChangesError(str(worktree.folder), tuple(sorted(in_the_way)))
    extra = [Step(path=path, before=_stat(worktree, path)) for path in sorted(in_the_way - touched)]
    stage = worktree.own / STAGE
    shutil.rmtree(stage, ignore_errors=True)
    if plan.files:
        require_distinct(worktree.own, [file.entry.path for file in plan.files])
        write_folder(store, plan.files, stage, workers=workers, progress=progress)
    steps = [step.evolve(after=_stat_of(stage / step.path)) if step.digest else step for step in plan.steps]
    journal = Journal(record=record, steps=(*extra, *steps), kept=tuple(plan.kept))
    worktree.write(JOURNAL, canonical_json(journal.dump()))
    carry_out(worktree, journal)
    removed = sum(step.digest is None and step.before is not None for step in journal.steps)
    left = tuple(path for path in status.paths if path not in touched and path not in in_the_way)
    return Switched(record.version or "", len(plan.files), removed, left)


def _wanted(
    store: ObjectStore, old: WorktreeRecord, new: WorktreeRecord, index: Index, status: Status, *, force: bool
) -> dict[str, Stored | None]:
    """Return path -> file of the new version, or None, for every path that may have to change.

    Only pages in which the versions differ are read; all of them where another part of the version is asked for.
    """
    before, after = _tree(store, old), _tree(store, new)
    same_part = (old.patterns, old.splits) == (new.patterns, new.splits)
    shared = {page.digest for page in before.pages} & {page.digest for page in after.pages} if same_part else set()
    chosen = _matching(new)
    found: dict[str, Stored | None] = {}
    for page in after.read(page for page in after.pages if page.digest not in shared):
        found |= {file.entry.path: file for file in stored_files(page) if chosen(file.entry)}
    if not found and not same_part and new.partial:
        raise NothingSelectedError((*new.patterns, *new.splits))
    gone = index.keys() - found.keys()
    if same_part:
        gone &= _paths(before, shared)
    wanted = {**dict.fromkeys(gone), **found}
    lost = {path for path in (*status.modified, *status.removed) if force and path not in wanted}
    for page in after.read(after.holding(lost)) if lost else ():
        wanted |= {file.entry.path: file for file in stored_files(page) if file.entry.path in lost}
    return wanted


def _tree(store: ObjectStore, record: WorktreeRecord) -> Tree:
    if record.version is None:
        return Tree.empty(store)
    return Tree.load(store, str(read_commit(store, record.version)["tree"]))


def _paths(tree: Tree, shared: set[Digest]) -> set[str]:
    pages = tree.read(page for page in tree.pages if page.digest not in shared)
    return {entry.path for page in pages for entry in page.entries}


def _matching(record: WorktreeRecord) -> Callable[[Entry], bool]:
    """Return whether a file belongs to the part of the version that the record asks for."""
    wanted = re.compile("|".join(translate(pattern) for pattern in record.patterns)) if record.patterns else None
    splits = frozenset(record.splits)

    def chosen(entry: Entry) -> bool:
        return (wanted is None or wanted.match(entry.path) is not None) and (not splits or entry.split in splits)

    return chosen


class _Plan(NamedTuple):
    steps: list[Step]
    kept: list[Step]
    files: list[Stored]
    """To fetch."""


def _plan(
    worktree: Worktree, index: Index, wanted: Mapping[str, Stored | None], dirty: set[str], *, force: bool
) -> _Plan:
    """Return what to do for each path, given which paths are not as the index says.

    A changed file that is the same in both versions stays changed.
    """
    check_plain(worktree.folder, list(wanted))
    removals: list[Step] = []
    plan = _Plan([], [], [])
    for path, file in sorted(wanted.items()):
        before = _stat(worktree, path)
        if file is None:
            removals.append(Step(path=path, before=before))
            continue
        entry = file.entry
        step = Step(path=path, digest=entry.digest.hex(), size=entry.size, split=entry.split, before=before)
        if path in dirty and not force and path in index and index[path].entry.digest == entry.digest:
            plan.kept.append(step.evolve(before=None))
        elif before is not None and _is_there(worktree, index, entry, path in dirty):
            plan.kept.append(step)
        else:
            plan.steps.append(step)
            plan.files.append(file)
    return plan._replace(steps=[*removals, *plan.steps])


def _is_there(worktree: Worktree, index: Index, entry: Entry, dirty: bool) -> bool:
    if not dirty:
        known = index.get(entry.path)
        return known is not None and known.entry.digest == entry.digest
    path = worktree.folder / entry.path
    return path.stat().st_size == entry.size and bytes.fromhex(hash_file(path)[0]) == entry.digest


def _in_the_way(status: Status, steps: Sequence[Step]) -> set[str]:
    """Return the changed paths that these steps would overwrite, remove, or have to be a folder or below a file."""
    changed, removed = set(status.paths), set(status.removed)
    writes = {step.path for step in steps if step.digest}
    hit = changed & writes | {step.path for step in steps if not step.digest} & (changed - removed)
    here = changed - removed
    for path in writes:
        hit |= here & set(_above(path))
    return hit | {path for path in here if not writes.isdisjoint(_above(path))}


def _above(path: str) -> Iterator[str]:
    while path := path.rpartition("/")[0]:
        yield path


def carry_out(worktree: Worktree, journal: Journal) -> None:
    """Do what a journal says, or the rest of it: every step can be done again.

    The journal lies in the folder, which may have come from anywhere: its paths are believed no more than a version's.
    """
    check_plain(worktree.folder, [step.path for step in (*journal.steps, *journal.kept)])
    stage = worktree.own / STAGE
    try:
        for step in journal.steps:
            if not step.digest:
                _remove(worktree, step)
        for step in journal.steps:
            if step.digest:
                _move_in(worktree, stage / step.path, step)
        _note(worktree, journal)
        (worktree.own / JOURNAL).unlink(missing_ok=True)
    except OSError as error:
        raise local_error(worktree.folder, error) from error
    shutil.rmtree(stage, ignore_errors=True)


def _remove(worktree: Worktree, step: Step) -> None:
    path = worktree.folder / step.path
    there = _stat_of(path)
    through_link = any((worktree.folder / folder).is_symlink() for folder in _above(step.path))
    if there is None or through_link or path.is_dir():
        return
    if there == step.before:
        path.unlink()
    else:
        _rescue(worktree, step.path)
    for folder in _above(step.path):
        try:
            (worktree.folder / folder).rmdir()
        except OSError:  # holds something else
            return


def _move_in(worktree: Worktree, staged: Path, step: Step) -> None:
    if _stat_of(staged) is None:
        return  # it was moved before the interruption
    target = worktree.folder / step.path
    for folder in _above(step.path):
        if _stat_of(worktree.folder / folder) is not None and not (worktree.folder / folder).is_dir():
            _rescue(worktree, folder)
    if target.is_dir() or _stat_of(target) not in (None, step.before):
        _rescue(worktree, step.path)
    checked_targets(worktree.folder, [step.path])
    staged.replace(target)


def _rescue(worktree: Worktree, path: str) -> None:
    """Keep what somebody put there after the switch had been worked out."""
    place = worktree.own / RESCUED / secrets.token_hex(4) / path
    place.parent.mkdir(parents=True)
    with suppress(FileNotFoundError):
        (worktree.folder / path).rename(place)


def _note(worktree: Worktree, journal: Journal) -> None:
    """Bring index and record up to date: what is not as it was put there is read by the next status."""
    index = worktree.index()
    for step in journal.steps:
        index.pop(step.path, None)
    there = [step for step in (*journal.steps, *journal.kept) if step.digest]
    right = {step.path: step.after or step.before for step in there}
    for path, known in known_files(worktree.folder, [step.entry() for step in there]).items():
        as_put = right[path] is not None and right[path] == _stat_of(worktree.folder / path)
        index[path] = known if as_put else known._replace(times=UNKNOWN)
    worktree.write_index(index)
    worktree.write_record(journal.record)


def _stat(worktree: Worktree, path: str) -> _Stat | None:
    return _stat_of(worktree.folder / path)


def _stat_of(path: Path) -> _Stat | None:
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ino
