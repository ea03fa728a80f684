"""Commit records, and how one becomes the newest of a branch.

A commit uploads packs, then pages, then the root page, then the commit, and only then adds an entry to the branch's
log. Until that one create-only put nothing refers to what came before it, so a process killed anywhere leaves nothing
half-visible, and the next try finds what is already up. Of writers who race for a place in the log exactly one wins;
the others take the new head as parent of what they have stored and try the next place.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from deepseek_ops.core.errors import PermanentError, TransientError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import DatasetVersion, Digest, canonical_json, digest_of
from deepseek_ops.data.history import CommitBody, History, read_commit, version_of
from deepseek_ops.data.layout import commit_key
from deepseek_ops.data.refs import RefEntry, RefLog
from deepseek_ops.data.trees import Tree

__all__ = [
    "BranchContendedError",
    "BranchMovedError",
    "CommitBody",
    "append_commit",
    "commit_body",
    "put_commit",
    "read_commit",
    "version_of",
    "wait_a_little",
]

COMMIT_SCHEMA = "dataset-commit/1"
APPEND_TRIES = 50


@dataclass(eq=False)
class BranchMovedError(PermanentError):
    """The branch is not where the writer believed it to be."""

    branch: str
    expected: Digest
    actual: str
    """Empty when the branch was deleted."""

    def __str__(self) -> str:
        if not self.actual:
            return f"{self.branch} was deleted, it was to be at {self.expected}; make it again with `data branch`."
        return (
            f"{self.branch} is at {self.actual}, not {self.expected}: somebody else was first. In a working folder "
            "commit again with --rebase; else merge, or check it out, redo the change and commit again."
        )


@dataclass(eq=False)
class BranchContendedError(TransientError):
    """Others won every place in the branch's log."""

    branch: str

    def __str__(self) -> str:
        return f"{self.branch}: {APPEND_TRIES} other writers were first, one after the other; commit again later."


def commit_body(
    tree: Tree,
    *,
    name: str,
    message: str,
    author: str,
    splits: Mapping[str, int] | None = None,
    lineage: Mapping[str, JsonValue] | None = None,
) -> CommitBody:
    """Return the record of a commit of this tree, parents left out."""
    return {
        "schema": COMMIT_SCHEMA,
        "name": name,
        "tree": tree.digest,
        "message": message,
        "author": author,
        "num_files": tree.num_files,
        "num_bytes": tree.num_bytes,
        "splits": dict(splits or {}),
        "lineage": dict(lineage or {}),
    }


def put_commit(
    store: ObjectStore, body: Mapping[str, JsonValue], parents: Sequence[Digest], history: History | None = None
) -> DatasetVersion:
    """Store a commit record, to which nothing refers yet, and return its version."""
    known = history or History(store)
    generation = 1 + max((known.generation(parent) for parent in parents), default=0)
    full: CommitBody = {**body, "parents": list(parents), "generation": generation}
    data = canonical_json(full)
    version = digest_of(data)
    store.put_blob(commit_key(version), data)
    return version_of(version, full)


def append_commit(
    store: ObjectStore, log: RefLog, last: RefEntry | None, body: Mapping[str, JsonValue], parent: Digest | None
) -> DatasetVersion:
    """Make the commit the newest of the branch, whose last entry is believed to be ``last``; return its version.

    Without ``parent`` whatever others committed meanwhile becomes the parent; with it the branch must be there, or
    never have existed. A commit that says what the head says makes no new version. Raises BranchMovedError,
    BranchContendedError.
    """
    history = History(store)
    for attempt in range(APPEND_TRIES):
        head = None if last is None or last.deleted else last.version
        if head:
            there = history.body(head)
            if all(there.get(key) == body[key] for key in ("tree", "lineage", "splits")):
                return version_of(head, there)
        if parent is not None and last is not None and head != parent:
            raise BranchMovedError(log.name, parent, last.version)
        start = head or parent
        version = put_commit(store, body, [start] if start else [], history)
        if log.append(version.version, after=last) is not None:
            return version
        wait_a_little(attempt)
        last = log.last()
    raise BranchContendedError(log.name)


def wait_a_little(attempt: int) -> None:
    """Sleep for up to 0.1 s, so that writers who lost one race do not all run the next."""
    time.sleep(random.uniform(0, 0.01 * min(attempt + 1, 10)))  # noqa: S311
