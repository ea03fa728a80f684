"""From a working folder to the next version of its branch: the version it was made from is the parent."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.ports import Progress
from deepseek_ops.core.records import DatasetVersion
from deepseek_ops.data.branching import BranchNotFoundError
from deepseek_ops.data.committing import BranchMovedError, append_commit, commit_body, put_commit
from deepseek_ops.data.folders import local_error
from deepseek_ops.data.packs import Stored, stored_files
from deepseek_ops.data.repository import DatasetRepository
from deepseek_ops.data.snapshot import store_folder
from deepseek_ops.data.splice import splice
from deepseek_ops.data.switching import Switched, switch
from deepseek_ops.data.trees import Tree
from deepseek_ops.data.worktree import UNKNOWN, Index, Known, Status, Worktree, WorktreeRecord


@dataclass(eq=False)
class NoBranchError(PermanentError):
    """A folder that was made from a tag or an id: it is on no branch."""

    folder: str

    def __str__(self) -> str:
        return f"{self.folder} is on no branch; commit with --branch and the name of a new or existing one."


@dataclass(frozen=True, slots=True)
class Committed:
    """What a commit from a working folder came to."""

    version: DatasetVersion
    status: Status
    """What was committed."""
    rebased: Switched | None = None
    """What came into the folder from others; None where nobody was first."""


def commit_worktree(
    repository: DatasetRepository,
    worktree: Worktree,
    *,
    message: str,
    author: str,
    branch: str = "",
    rebase: bool = False,
    lineage: Mapping[str, JsonValue] | None = None,
    progress: Progress | None = None,
) -> Committed:
    """Commit what was changed in the folder and return the version. Call it locked, after ``recover``.

    The branch must be at the version the folder was made from: BranchMovedError otherwise. With ``rebase`` the changes
    are redone on top of what others committed, which comes into the folder too; MergeConflictError names the files that
    both changed, and the folder stays as it is. Nothing changed makes no version. Files keep the split they had; new
    ones have none.
    """
    record, status, index = worktree.record(), worktree.status(), worktree.index()
    name = branch or record.branch
    if not name:
        raise NoBranchError(str(worktree.folder))
    log = repository.log_of(record.dataset, name)
    last = log.last()
    if last is not None and last.deleted:
        raise BranchNotFoundError(log.name, record.version or "")
    if rebase and record.version is not None and last is not None and last.version != record.version:
        return _rebased(repository, worktree, record, name, status, index, message, author)
    if record.version is not None and not status and name == record.branch:
        return Committed(repository.load(record.version), status)
    tree = _stored(repository, worktree, record, status, index, progress)
    body = commit_body(tree, name=record.dataset, message=message, author=author, lineage=lineage)
    if record.version is None and last is not None:
        raise BranchMovedError(log.name, "(nothing)", last.version)
    version = append_commit(repository.store, log, last, body, record.version)
    _follow(worktree, record.evolve(version=version.version, branch=name), status, index, tree)
    return Committed(version, status)


def _stored(
    repository: DatasetRepository,
    worktree: Worktree,
    record: WorktreeRecord,
    status: Status,
    index: Index,
    progress: Progress | None,
) -> Tree:
    """Return the tree of the next version, stored."""
    base = repository.tree(record.version) if record.version else Tree.empty(repository.store)

    def split_of(path: str) -> str:
        known = index.get(path)
        return known.entry.split if known else ""

    if not record.partial:
        return store_folder(repository.store, worktree.folder, parent=base, split_of=split_of, progress=progress)
    edits: dict[str, Stored | None] = dict.fromkeys(status.removed)
    changed = [*status.added, *status.modified]
    if changed:
        with tempfile.TemporaryDirectory(prefix="commit-", dir=worktree.own) as folder:
            _link(worktree.folder, changed, Path(folder))
            part = store_folder(repository.store, Path(folder), parent=base, split_of=split_of, progress=progress)
        edits |= {file.entry.path: file for page in part.read(part.pages) for file in stored_files(page)}
    return splice(repository.store, base, edits)


def _link(source: Path, names: list[str], target: Path) -> None:
    """Make a folder of only these files, without copying them."""
    try:
        for name in names:
            place = target / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.hardlink_to(source / name)
    except OSError as error:
        raise local_error(target, error) from error


def _rebased(
    repository: DatasetRepository,
    worktree: Worktree,
    record: WorktreeRecord,
    branch: str,
    status: Status,
    index: Index,
    message: str,
    author: str,
) -> Committed:
    """Redo the folder's changes on top of the branch: a commit of our own that nothing names is merged into it."""
    store = repository.store
    tree = _stored(repository, worktree, record, status, index, None)
    body = commit_body(tree, name=record.dataset, message=message, author=author)
    parents = [record.version] if record.version else []
    mine = put_commit(store, body, parents)
    merged = repository.merge(
        record.dataset, mine.version, into=branch, author=author, message=message, linear=True
    ).version
    _follow(worktree, record.evolve(version=mine.version, branch=branch), status, index, tree)
    switched = switch(store, worktree, record.evolve(version=merged.version, branch=branch))
    return Committed(merged, status, switched)


def _follow(worktree: Worktree, record: WorktreeRecord, status: Status, index: Index, tree: Tree) -> None:
    """Say that the folder is now the version that was made from it.

    Digests come from what was stored. Times are left out, since a file may have changed after it was read: the next
    status reads the changed files once more.
    """
    changed = {*status.added, *status.modified}
    entries = {entry.path: entry for page in tree.read(tree.holding(changed)) for entry in page.entries}
    for path in status.removed:
        index.pop(path, None)
    for path in changed:
        if path in entries:
            index[path] = Known(entries[path], UNKNOWN)
    worktree.write_index(index)
    worktree.write_record(record)


def adopt(repository: DatasetRepository, worktree: Worktree, name: str, branch: str, *, pointer: str = "") -> None:
    """Make a plain folder the working folder of a dataset: its files are the changes to the branch, if there is one.

    Nothing is stored. Files that are as the branch has them are recognised by their bytes, once.
    """
    head = repository.log_of(name, branch).head()
    version = head.version if head else None
    record = WorktreeRecord(dataset=name, store=repository.store.uri, version=version, branch=branch, pointer=pointer)
    files = repository.files(version) if version else []
    with worktree.locked():
        worktree.write_index({file.entry.path: Known(file.entry, UNKNOWN) for file in files})
        worktree.write_record(record)
