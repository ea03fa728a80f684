"""The plan of a collection: what nothing reaches and nobody has stored lately. See ``gc_guard`` for what comes after.

Objects are listed once and compared with what is reached; neither the listing nor the candidates are held in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from pydantic import Field

from deepseek_ops.core.ports import ObjectInfo, ObjectStore
from deepseek_ops.core.records import Record
from deepseek_ops.data.gc_clock import store_time
from deepseek_ops.data.gc_history import RetentionPolicy
from deepseek_ops.data.gc_marks import Marks, mark
from deepseek_ops.data.gc_names import Names, ReadNames, add_names_in_store, nobody_asked
from deepseek_ops.data.gc_runs import (
    KINDS,
    CandidatePage,
    CandidateWriter,
    Kind,
    Plan,
    Tally,
    key_of,
    kind_of,
    new_run,
    write_plan,
)

PREFIXES: dict[Kind, str] = {
    "commits": "commits/",
    "trees": "trees/",
    "packs": "packs/",
    "objects": "objects/sha256/",
}
EXAMPLES = 5
REPORT_EVERY = 100_000

Say = Callable[[str], None]


def silent(_line: str) -> None:
    """Say nothing."""


class KindReport(Record):
    """What was found of one kind of object."""

    reached: Tally = Tally()
    young: Tally = Tally(objects=0)
    """Unreached, and stored within the grace."""
    unknown: Tally = Tally()
    """Unreached by us, but those who could name it were not asked."""
    candidates: Tally = Tally()
    examples: tuple[str, ...] = ()


class CollectionPlan(Record):
    """What a collection would delete, and why it leaves the rest."""

    store: str
    run: str = Field(default="", description="Empty when nothing was written: a dry run, or nothing can go.")
    policy: RetentionPolicy
    kinds: dict[str, KindReport]
    sparse_packs: Tally = Field(default=Tally(), description="Packs that stay with less than half of them needed.")
    wasted_bytes: int = Field(default=0, description="In all packs that stay: freed when the last file of each goes.")
    kept_versions: int
    dropped_versions: int = Field(description="Versions whose content goes; their records stay as history.")
    dropped_examples: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def num_objects(self) -> int:
        """How many objects would go."""
        return sum(report.candidates.objects for report in self.kinds.values())

    @property
    def num_bytes(self) -> int:
        """How many bytes would go."""
        return sum(report.candidates.bytes for report in self.kinds.values())


@dataclass
class _Count:
    objects: int = 0
    bytes: int = 0

    def add(self, info: ObjectInfo) -> None:
        self.objects += 1
        self.bytes += info.size

    def tally(self) -> Tally:
        return Tally(objects=self.objects, bytes=self.bytes)


@dataclass
class _Counts:
    reached: _Count = field(default_factory=_Count)
    young: _Count = field(default_factory=_Count)
    unknown: _Count = field(default_factory=_Count)
    candidates: _Count = field(default_factory=_Count)
    examples: list[str] = field(default_factory=list)

    def report(self) -> KindReport:
        return KindReport(
            reached=self.reached.tally(),
            young=self.young.tally(),
            unknown=self.unknown.tally(),
            candidates=self.candidates.tally(),
            examples=tuple(self.examples),
        )


@dataclass
class _Waste:
    bytes: int = 0
    sparse: _Count = field(default_factory=_Count)

    def add(self, info: ObjectInfo, wasted: int) -> None:
        self.bytes += wasted
        if wasted > info.size / 2:
            self.sparse.add(info)


def plan_collection(
    store: ObjectStore,
    policy: RetentionPolicy,
    read_names: ReadNames = nobody_asked,
    *,
    write: bool = False,
    say: Say = silent,
) -> CollectionPlan:
    """Return what can go. With ``write`` the plan is stored, and ``sweep`` carries it out later.

    Raises DamagedVersionError when a version that must be whole is not, UnclockedStoreError.
    """
    now = store_time(store)
    names, marks = read_marks(store, policy, read_names, now, say)
    run = new_run(now)
    writer = CandidateWriter(store, run) if write else None
    survey = _Survey(policy, names, marks, now, writer)
    survey.list_all(store, say)
    pages = writer.finish() if writer else ()
    plan = CollectionPlan(
        store=store.uri,
        run=run if pages else "",
        policy=policy,
        kinds={kind: count.report() for kind, count in survey.counts.items()},
        sparse_packs=survey.waste.sparse.tally(),
        wasted_bytes=survey.waste.bytes,
        kept_versions=marks.kept_versions,
        dropped_versions=len(survey.gone),
        dropped_examples=tuple(version.hex() for version in survey.gone[:EXAMPLES]),
        problems=tuple(marks.problems),
        notes=tuple(names.notes),
    )
    if pages:
        _write(store, plan, pages)
    return plan


def read_marks(
    store: ObjectStore, policy: RetentionPolicy, read_names: ReadNames, now: float, say: Say
) -> tuple[Names, Marks]:
    """Ask everybody what they name, and return that and what is reached from it."""
    names = read_names()
    add_names_in_store(store, names)
    say(f"{len(names.names) + len(names.leaves)} digests are named outside of the dataset versions")
    marks = mark(store, policy, names, now)
    say(f"{marks.kept_versions} versions stay: {len(marks.trees)} pages, {len(marks.packs)} packs")
    return names, marks


def _write(store: ObjectStore, plan: CollectionPlan, pages: tuple[CandidatePage, ...]) -> None:
    tallies = {kind: report.candidates for kind, report in plan.kinds.items()}
    write_plan(store, Plan(run=plan.run, pages=pages, candidates=tallies, settle_seconds=plan.policy.settle_seconds))


@dataclass
class _Survey:
    """What is found while everything is listed once."""

    policy: RetentionPolicy
    names: Names
    marks: Marks
    now: float
    writer: CandidateWriter | None
    counts: dict[Kind, _Counts] = field(default_factory=lambda: {kind: _Counts() for kind in KINDS})
    waste: _Waste = field(default_factory=_Waste)
    gone: list[bytes] = field(default_factory=list)
    """Versions that lose their content."""

    def list_all(self, store: ObjectStore, say: Say) -> None:
        """Count every object by what becomes of it, and write the candidates."""
        for listed, prefix in PREFIXES.items():
            for number, (info, digest) in enumerate(_objects(store, prefix), start=1):
                kind: Kind = "roots" if listed == "trees" and digest in self.marks.dropped else listed
                self._see(kind, info, digest)
                if number % REPORT_EVERY == 0:
                    say(f"{prefix}: {number} objects seen, {self.counts[listed].candidates.objects} can go")

    def _see(self, kind: Kind, info: ObjectInfo, digest: bytes) -> None:
        count = self.counts[kind]
        if self.marks.keeps(kind, digest):
            count.reached.add(info)
            if kind == "packs":
                self.waste.add(info, self.marks.pack_use.wasted(digest, info.size))
        elif not info.modified or self.now - info.modified <= self.policy.grace_seconds:
            count.young.add(info)
        elif kind in ("commits", "objects") and not self.names.complete:
            # Facts and Git may name them: unreached by us is not unreached.
            count.unknown.add(info)
        else:
            self._let_go(kind, info, digest)

    def _let_go(self, kind: Kind, info: ObjectInfo, digest: bytes) -> None:
        count = self.counts[kind]
        count.candidates.add(info)
        if len(count.examples) < EXAMPLES:
            count.examples.append(key_of(kind, digest))
        if kind == "roots":
            self.gone.append(self.marks.dropped[digest])
        if self.writer is not None:
            self.writer.add(kind, digest, info.size)


def _objects(store: ObjectStore, prefix: str) -> Iterator[tuple[ObjectInfo, bytes]]:
    for info in store.list(prefix):
        named = kind_of(info.key)
        if named is not None:
            yield info, named[1]
