"""How versions descend from each other: the log of a branch, the graph behind it, and where two branches parted.

A commit names its parents and how far it is from the first one (``generation``: one more than its furthest parent).
Reading from the highest generation down meets every commit before its ancestors, so looking for the common ancestors
of two branches reads what came after they parted, however long their common past is. Commits that were stored without
a generation get one by reading their past once.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from pydantic import JsonValue

from deepseek_ops.core.errors import IntegrityError, ObjectNotFoundError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import DatasetVersion, Digest, digest_of
from deepseek_ops.data.layout import commit_key
from deepseek_ops.data.naming import VersionNotFoundError
from deepseek_ops.data.refs import RefEntry, RefLog

CommitBody = dict[str, JsonValue]

_OURS, _THEIRS, _STALE = 1, 2, 4


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One version in a history."""

    version: Digest
    at: str
    """ISO 8601, UTC: when the branch got there; empty for a version that came in by a merge or from another branch."""
    message: str
    author: str
    num_files: int
    num_bytes: int
    parents: tuple[Digest, ...] = ()
    """Two for a merge: first the branch it was made on."""


def log_entry(version: Digest, body: Mapping[str, JsonValue], at: str = "") -> LogEntry:
    """Return what a log says about a commit."""
    files, size = body.get("num_files"), body.get("num_bytes")
    return LogEntry(
        version=version,
        at=at,
        message=str(body.get("message")),
        author=str(body.get("author")),
        num_files=files if isinstance(files, int) else 0,
        num_bytes=size if isinstance(size, int) else 0,
        parents=tuple(parents_of(body)),
    )


def read_commit(store: ObjectStore, version: str) -> CommitBody:
    """Return the commit record of a version. Raises VersionNotFoundError, IntegrityError."""
    key = commit_key(version)
    try:
        data = store.get(key)
    except ObjectNotFoundError:
        raise VersionNotFoundError(store.uri, version) from None
    if (actual := digest_of(data)) != version:
        raise IntegrityError(f"{store.uri}/{key}", version, actual)
    body: CommitBody = json.loads(data)
    return body


def version_of(version: Digest, body: Mapping[str, JsonValue]) -> DatasetVersion:
    """Return the record of a version from its commit."""
    kept = {key: body.get(key) for key in ("name", "tree", "num_files", "num_bytes", "splits")}
    return DatasetVersion.load({"version": version, **kept})


def parents_of(body: Mapping[str, JsonValue]) -> list[Digest]:
    """Return the parents a commit names, the branch it was made on first."""
    parents = body.get("parents")
    return [str(parent) for parent in parents] if isinstance(parents, list) else []


class History:
    """The commits of one store as a graph; each is read once."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._bodies: dict[Digest, CommitBody] = {}
        self._generations: dict[Digest, int] = {}

    def body(self, version: Digest) -> CommitBody:
        """Return a commit record. Raises VersionNotFoundError, IntegrityError."""
        if version not in self._bodies:
            self._bodies[version] = read_commit(self._store, version)
        return self._bodies[version]

    def parents(self, version: Digest) -> list[Digest]:
        """Return the parents of a version."""
        return parents_of(self.body(version))

    def generation(self, version: Digest) -> int:
        """Return how many commits lie on the longest way to a first one, itself included."""
        stored = self.body(version).get("generation")
        if isinstance(stored, int):
            return stored
        pending = [version]
        while pending:
            last = pending[-1]
            missing = [parent for parent in self.parents(last) if self._known_generation(parent) is None]
            if missing:
                pending += missing
            else:
                parents = [self._known_generation(parent) or 0 for parent in self.parents(last)]
                self._generations[pending.pop()] = 1 + max(parents, default=0)
        return self._generations[version]

    def _known_generation(self, version: Digest) -> int | None:
        stored = self.body(version).get("generation")
        return stored if isinstance(stored, int) else self._generations.get(version)

    def walk(self, heads: Iterable[Digest]) -> Iterator[Digest]:
        """Yield these versions and their ancestors, each before its parents, once."""
        heap = [(-self.generation(version), version) for version in set(heads)]
        heapq.heapify(heap)
        seen = {version for _, version in heap}
        while heap:
            _, version = heapq.heappop(heap)
            yield version
            for parent in self.parents(version):
                if parent not in seen:
                    seen.add(parent)
                    heapq.heappush(heap, (-self.generation(parent), parent))

    def is_ancestor(self, old: Digest, new: Digest) -> bool:
        """Return whether ``new`` is ``old`` or was made from it."""
        lowest = self.generation(old)
        for version in self.walk([new]):
            if version == old:
                return True
            if self.generation(version) < lowest:
                return False
        return False

    def merge_bases(self, ours: Digest, theirs: Digest) -> list[Digest]:
        """Return the newest common ancestors, sorted: none for unrelated versions, several after a criss-cross merge.

        Each is an ancestor of both and of no other one that is returned.
        """
        marks: dict[Digest, int] = {ours: _OURS}
        marks[theirs] = marks.get(theirs, 0) | _THEIRS
        heap = [(-self.generation(version), version) for version in marks]
        heapq.heapify(heap)
        live = set(marks)
        """In the heap and not yet known to be behind a common ancestor."""
        found: list[Digest] = []
        while live:
            _, version = heapq.heappop(heap)
            live.discard(version)
            mark = marks[version]
            if mark == _OURS | _THEIRS:
                found.append(version)
                mark |= _STALE
            for parent in self.parents(version):
                old = marks.get(parent, 0)
                if parent not in marks:
                    heapq.heappush(heap, (-self.generation(parent), parent))
                marks[parent] = old | mark
                if marks[parent] & _STALE:
                    live.discard(parent)
                else:
                    live.add(parent)
        return sorted(found)


def graph_log(store: ObjectStore, log: RefLog, *, limit: int | None = None) -> Iterator[LogEntry]:
    """Yield the head of a branch and everything it was made from, each before its parents.

    The time is known for what the branch itself went through.
    """
    head: RefEntry | None = log.head()
    if head is None:
        return
    history = History(store)
    # What the graph's first commits went through this branch is among as many of its newest entries.
    at = {entry.version: entry.at for entry in log.entries(limit=limit)}
    for version in islice(history.walk([head.version]), limit):
        yield log_entry(version, history.body(version), at.get(version, ""))
