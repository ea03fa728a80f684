"""Branches: making, deleting and merging them moves names and pages, never the files' bytes.

Every step is one create-only entry in a branch's log. Who loses the race for it looks again: a merge is worked out
anew against the new head, a deletion or a new branch is refused, since somebody else has just said what it is to be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import DatasetVersion, Digest
from deepseek_ops.data.committing import (
    APPEND_TRIES,
    BranchContendedError,
    BranchMovedError,
    CommitBody,
    commit_body,
    put_commit,
    version_of,
    wait_a_little,
)
from deepseek_ops.data.history import History
from deepseek_ops.data.merge import MergeConflict, MergeConflictError, MergePlan, Preference, merged_splits, plan_merge
from deepseek_ops.data.refs import RefEntry, RefLog
from deepseek_ops.data.splice import splice
from deepseek_ops.data.trees import Tree


@dataclass(eq=False)
class BranchExistsError(PermanentError):
    """A branch of this name is there and names another version."""

    branch: str
    version: Digest

    def __str__(self) -> str:
        return f"{self.branch} exists at {self.version}; choose another name, merge into it, or delete it first."


@dataclass(eq=False)
class BranchNotFoundError(PermanentError):
    """A branch does not exist, or was deleted."""

    branch: str
    last: str
    """Version it was at when it was deleted; empty when it never was there."""

    def __str__(self) -> str:
        if not self.last:
            return f"{self.branch} does not exist; `data branch` lists the branches."
        names = self.branch.replace("@", " ", 1)
        return f"{self.branch} was deleted at {self.last}; `data branch {names} --at {self.last}` makes it again."


@dataclass(eq=False)
class OtherDatasetError(PermanentError):
    """A branch of one dataset was to begin at a version of another one."""

    branch: str
    version: Digest
    dataset: str

    def __str__(self) -> str:
        return f"{self.branch} cannot begin at {self.version}: that is a version of {self.dataset}."


@dataclass(frozen=True, slots=True)
class MergeResult:
    """What a merge came to."""

    version: DatasetVersion
    how: Literal["already merged", "fast-forward", "merge"]
    """``already merged``: ours came from theirs, nothing was done. ``fast-forward``: theirs came from ours, the branch
    went there without a commit. ``merge``: a commit with two parents."""
    changed: int
    """Files that differ from what the branch had."""
    resolved: tuple[MergeConflict, ...] = ()
    """Conflicts that a preference settled."""


def create_branch(store: ObjectStore, dataset: str, branch: str, at: Digest) -> Digest:
    """Begin a branch at a version and return the version; a branch that is there already is left alone.

    Raises BranchExistsError when there is one elsewhere, OtherDatasetError.
    """
    name = str(History(store).body(at).get("name"))
    log = RefLog(store, dataset, branch)
    if name != dataset:
        raise OtherDatasetError(log.name, at, name)
    last = log.last()
    while last is None or last.deleted:
        if log.append(at, after=last) is not None:
            return at
        last = log.last()
    if last.version != at:
        raise BranchExistsError(log.name, last.version)
    return at


def delete_branch(store: ObjectStore, dataset: str, branch: str, *, expected: Digest | None = None) -> Digest:
    """End a branch and return the version it was at; the versions stay until nothing else names them.

    Raises BranchNotFoundError, and BranchMovedError when somebody commits to it meanwhile or it is not ``expected``.
    """
    log = RefLog(store, dataset, branch)
    head = require_head(log)
    if expected is not None and head.version != expected:
        raise BranchMovedError(log.name, expected, head.version)
    if log.append("", after=head) is None:
        moved = log.last()
        raise BranchMovedError(log.name, head.version, moved.version if moved else "")
    return head.version


def require_head(log: RefLog) -> RefEntry:
    """Return the newest entry of a branch. Raises BranchNotFoundError, saying where a deleted one was."""
    newest = list(log.all_entries(limit=2))
    if not newest or newest[0].deleted:
        raise BranchNotFoundError(log.name, newest[1].version if len(newest) > 1 else "")
    return newest[0]


@dataclass(frozen=True, slots=True)
class MergeRequest:
    """What is to be merged, and how."""

    source: str
    """What people called it: for messages."""
    theirs: Digest
    author: str
    message: str = ""
    preferences: Sequence[Preference] = ()
    fast_forward: bool = True
    """False makes a commit with two parents where none is needed."""
    linear: bool = False
    """The result has one parent, the branch's head: theirs is redone on top of it."""


def merge_into(store: ObjectStore, log: RefLog, request: MergeRequest, *, workers: int = 8) -> MergeResult:
    """Merge a version into a branch and return what came of it.

    The merge commit has the lineage ``{"merged": {"ours", "theirs", "bases"}}``: its data came from both, each of which
    says where from. Its records per split are what both sides added to their base, or unknown where both changed one
    file. Raises MergeConflictError with every conflict, BranchNotFoundError, BranchContendedError.
    """
    history = History(store)
    for attempt in range(APPEND_TRIES):
        head = require_head(log)
        result = _merged(store, history, log, head, request, workers)
        if result.how == "already merged" or log.append(result.version.version, after=head) is not None:
            return result
        wait_a_little(attempt)
    raise BranchContendedError(log.name)


def _merged(
    store: ObjectStore, history: History, log: RefLog, head: RefEntry, request: MergeRequest, workers: int
) -> MergeResult:
    """Return the merge into this head, its commit stored and named by nothing yet."""
    ours, theirs = head.version, request.theirs
    bases = history.merge_bases(ours, theirs)
    if bases == [theirs]:
        return MergeResult(version_of(ours, history.body(ours)), "already merged", 0)
    trees = {version: Tree.load(store, str(history.body(version)["tree"])) for version in {ours, theirs, *bases}}
    base_trees = [trees[base] for base in bases] or [Tree.empty(store)]
    plan = plan_merge(base_trees, trees[ours], trees[theirs], preferences=request.preferences)
    if plan.conflicts:
        raise MergeConflictError(log.name, request.source, ours, theirs, plan.conflicts)
    if bases == [ours] and request.fast_forward:
        return MergeResult(version_of(theirs, history.body(theirs)), "fast-forward", len(plan.edits))
    tree = splice(store, trees[ours], plan.edits, workers=workers)
    if request.linear and tree.digest == trees[ours].digest:
        return MergeResult(version_of(ours, history.body(ours)), "already merged", 0, plan.resolved)
    body = _merge_body(history, tree, log, request, ours, bases, plan)
    parents = [ours] if request.linear else [ours, theirs]
    return MergeResult(put_commit(store, body, parents, history), "merge", len(plan.edits), plan.resolved)


def _merge_body(
    history: History, tree: Tree, log: RefLog, request: MergeRequest, ours: Digest, bases: list[Digest], plan: MergePlan
) -> CommitBody:
    theirs = history.body(request.theirs)
    base = _counts(history.body(bases[0])) if len(bases) == 1 else {}
    splits = merged_splits(base, _counts(history.body(ours)), _counts(theirs), additive=plan.additive)
    lineage: dict[str, JsonValue] = {"merged": {"ours": ours, "theirs": request.theirs, "bases": list(bases)}}
    if request.linear:
        kept = theirs.get("lineage")
        lineage = dict(kept) if isinstance(kept, dict) else {}
    name, _, branch = log.name.partition("@")
    return commit_body(
        tree,
        name=name,
        message=request.message or f"Merge {request.source} into {branch}",
        author=request.author,
        splits=splits,
        lineage=lineage,
    )


def _counts(body: Mapping[str, JsonValue]) -> dict[str, int]:
    splits = body.get("splits")
    return {name: count for name, count in splits.items() if isinstance(count, int)} if isinstance(splits, dict) else {}
