"""Which versions of which branches stay: retention by age and count, and what merges will need."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

from pydantic import Field

from deepseek_ops.core.ports import ObjectInfo, ObjectStore
from deepseek_ops.core.records import Record
from deepseek_ops.data.parallel import in_order
from deepseek_ops.data.refs import HEADS

DAY = 24 * 3600.0
WORKERS = 8


class RetentionPolicy(Record):
    """What stays, and for how long."""

    keep_days: float = Field(default=30.0, ge=0, description="Versions that were a branch's head so lately stay.")
    keep_versions: int = Field(default=10, ge=1, description="And at least so many of each branch.")
    grace_days: float = Field(default=7.0, ge=0, description="Nothing younger goes: no job may run longer than this.")
    settle_days: float = Field(default=1.0, ge=0, description="From the plan to the earliest sweep.")

    @property
    def grace_seconds(self) -> float:
        return self.grace_days * DAY

    @property
    def settle_seconds(self) -> float:
        return self.settle_days * DAY


class Commit(NamedTuple):
    """What marking needs of a commit record."""

    tree: bytes
    parents: tuple[bytes, ...]


@dataclass(frozen=True)
class BranchLog:
    """The log of one branch, newest first. A deletion is an entry without a version."""

    dataset: str
    places: Sequence[tuple[bytes, float]]
    """Version (empty for a deletion) and when the branch got there, by the store's clock."""

    @property
    def versions(self) -> set[bytes]:
        return {version for version, _ in self.places} - {b""}

    @property
    def head(self) -> bytes:
        """The newest version, or nothing when the branch was deleted."""
        return self.places[0][0]

    def kept(self, policy: RetentionPolicy, now: float) -> set[bytes]:
        """Return the head, the newest versions since the branch was made, and what was a head lately."""
        found: set[bytes] = set()
        left = now  # when the branch went on from the place
        alive = True
        for number, (version, at) in enumerate(self.places):
            alive = alive and bool(version)
            lately = now - left <= policy.keep_days * DAY
            if version and (lately or (alive and number < policy.keep_versions)):
                found.add(version)
            left = at
        return found


def branch_logs(store: ObjectStore) -> list[BranchLog]:
    """Return the log of every branch of every dataset."""
    infos = list(store.list(HEADS))
    found: dict[str, list[tuple[bytes, float]]] = {}
    for info, version in zip(infos, in_order(lambda one: _version(store, one), infos, WORKERS), strict=True):
        # A store that does not say when an entry was made: it was made now, and stays.
        at = info.modified or float("inf")
        found.setdefault(info.key.rpartition("/")[0], []).append((version, at))
    return [BranchLog(name.removeprefix(HEADS).partition("/")[0], places) for name, places in found.items()]


def _version(store: ObjectStore, info: ObjectInfo) -> bytes:
    return bytes.fromhex(json.loads(store.get(info.key))["version"])


def ancestors(commits: Mapping[bytes, Commit], of: Iterable[bytes]) -> set[bytes]:
    """Return these commits and all that came before them, as far as they are known."""
    waiting, found = [digest for digest in of if digest in commits], set[bytes]()
    while waiting:
        digest = waiting.pop()
        if digest not in found:
            found.add(digest)
            waiting += [parent for parent in commits[digest].parents if parent in commits]
    return found


def where_branches_parted(commits: Mapping[bytes, Commit], logs: Iterable[BranchLog]) -> set[bytes]:
    """Return, for any two branches of a dataset, the commits where going back from one first meets the other.

    The bases of a merge are among them.
    """
    heads: dict[str, set[bytes]] = {}
    for log in logs:
        if log.head:
            heads.setdefault(log.dataset, set()).add(log.head)
    found: set[bytes] = set()
    for group in heads.values():
        before = {head: ancestors(commits, [head]) for head in group} if len(group) > 1 else {}
        for one, other in combinations(sorted(group), 2):
            found |= _first_met(commits, one, before[other])
    return found


def _first_met(commits: Mapping[bytes, Commit], start: bytes, others: set[bytes]) -> set[bytes]:
    waiting, seen, met = [start], set[bytes](), set[bytes]()
    while waiting:
        digest = waiting.pop()
        if digest in seen or digest not in commits:
            continue
        seen.add(digest)
        if digest in others:
            met.add(digest)
        else:
            waiting += commits[digest].parents
    return met
