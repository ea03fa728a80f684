"""Carrying a plan out: the second half of the collector's protocol, see ``gc_guard``."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from pydantic import Field, JsonValue

from deepseek_ops.core.errors import ObjectNotFoundError, PermanentError, TransientError
from deepseek_ops.core.ports import ObjectInfo, ObjectStore
from deepseek_ops.core.records import Record
from deepseek_ops.data.gc_clock import Heartbeat, store_time
from deepseek_ops.data.gc_history import RetentionPolicy
from deepseek_ops.data.gc_leases import remove_lapsed, writers_unaware_of
from deepseek_ops.data.gc_marks import keep_what_they_name
from deepseek_ops.data.gc_names import ReadNames, nobody_asked
from deepseek_ops.data.gc_plan import Say, read_marks, silent
from deepseek_ops.data.gc_runs import (
    CandidatePage,
    Plan,
    Tally,
    is_abandoned,
    is_settled,
    key_of,
    new_marker,
    open_markers,
    pending_runs,
    read_page,
    read_plan,
    rows_of,
    run_objects,
    settle,
)
from deepseek_ops.data.leases import remove_ended
from deepseek_ops.data.parallel import in_order

BATCH = 256
"""Keys of one request for deletion."""
WORKERS = 8
DAY = 24 * 3600.0
FORGET_DAYS = 90.0
"""Reports of collections older than this are removed."""


@dataclass(frozen=True)
class SweepTimes:
    """How long a collector is believed and waits, in seconds of the store's clock."""

    marker_seconds: float = 300.0
    """A collector that could not renew its marker for so long deletes nothing more."""
    abandoned_seconds: float = 3600.0
    """After so long writers hold it for dead."""
    patience_seconds: float = 900.0
    """How long it waits for writers that were there before it."""
    poll_seconds: float = 1.0


DEFAULT_TIMES = SweepTimes()


class SweepReport(Record):
    """What a sweep did."""

    run: str
    deleted: dict[str, Tally] = Field(default_factory=dict)
    spared: int = 0
    """Candidates that are reached again, or were stored again, since the plan."""
    missing: int = 0
    """Candidates that were gone already."""
    discarded: bool = False
    """The plan was too old to be carried out."""


@dataclass(eq=False)
class TooEarlyError(PermanentError):
    """The second interval is not over."""

    run: str
    seconds: float

    def __str__(self) -> str:
        return f"collection {self.run} was planned too lately: it can be carried out in {self.seconds:.0f} s."


@dataclass(eq=False)
class SweepRunningError(TransientError):
    """Somebody else carries this plan out."""

    run: str

    def __str__(self) -> str:
        return f"collection {self.run} is being carried out by another process; wait until it is done."


@dataclass(eq=False)
class WritersBusyError(TransientError):
    """Writers were there first and did not end."""

    run: str
    writers: tuple[str, ...]

    def __str__(self) -> str:
        shown = ", ".join(self.writers[:3])
        return (
            f"collection {self.run} gave way to {len(self.writers)} writers ({shown}); nothing was deleted, try later."
        )


@dataclass(eq=False)
class CollectorStoppedError(TransientError):
    """The collector stood still, and others may hold it for dead."""

    run: str

    def __str__(self) -> str:
        return (
            f"collection {self.run} could not renew its marker in time and has stopped; the next try goes on with it."
        )


@dataclass
class _Done:
    deleted: dict[str, Tally] = field(default_factory=dict)
    spared: int = 0
    missing: int = 0


def sweep(
    store: ObjectStore,
    policy: RetentionPolicy,
    run: str,
    read_names: ReadNames = nobody_asked,
    *,
    times: SweepTimes = DEFAULT_TIMES,
    say: Say = silent,
) -> SweepReport:
    """Delete the candidates of a plan that are still unreached and still old. A run that is settled is left alone.

    Raises TooEarlyError, SweepRunningError, WritersBusyError, CollectorStoppedError, DamagedVersionError; the plan
    stays and can be swept again after each of them.
    """
    plan, planned_at = _plan(store, run)
    early = planned_at + plan.settle_seconds - store_time(store)
    if early > 0:
        raise TooEarlyError(run, early)
    others = [info.key for info in open_markers(store, run)]
    if not all(is_abandoned(store, marker) for marker in others):
        raise SweepRunningError(run)
    body: dict[str, JsonValue] = {"run": run, "abandoned_seconds": times.abandoned_seconds}
    marker = Heartbeat(store, new_marker(run), body, seconds=times.marker_seconds)
    marker.start()
    try:
        _wait_for_writers(store, run, marker.key, times, say)
        report = _Sweeper(store, policy, plan, marker, read_names, say).carry_out()
        settle(store, run, report)
        _tidy(store, times)
        return report
    finally:
        marker.end()
        store.delete([marker.key, *others])


def _plan(store: ObjectStore, run: str) -> tuple[Plan, float]:
    if is_settled(store, run):
        return Plan(run=run, pages=(), candidates={}, settle_seconds=0), 0.0
    return read_plan(store, run)


def _wait_for_writers(store: ObjectStore, run: str, marker: str, times: SweepTimes, say: Say) -> None:
    limit = time.monotonic() + times.patience_seconds
    said = False
    while writers := writers_unaware_of(store, marker):
        if time.monotonic() > limit:
            raise WritersBusyError(run, tuple(writers))
        if not said:
            say(f"waiting for {len(writers)} writers: {', '.join(writers[:3])}")
            said = True
        time.sleep(times.poll_seconds)


class _Sweeper:
    """One sweep whose marker stands and whose writers are known."""

    def __init__(
        self,
        store: ObjectStore,
        policy: RetentionPolicy,
        plan: Plan,
        marker: Heartbeat,
        read_names: ReadNames,
        say: Say,
    ) -> None:
        self._store = store
        self._plan = plan
        self._marker = marker
        self._say = say
        self._now = store_time(store)
        self._oldest_young = self._now - policy.grace_seconds
        self._names, self._marks = read_marks(store, policy, read_names, self._now, say)
        self._done = _Done()
        self._stored_again: list[bytes] = []
        """Pages that were stored again since they were marked."""

    def carry_out(self) -> SweepReport:
        """Delete and return what was done."""
        for page in self._plan.pages:
            if page.kind == "packs" or page.kind == "objects":
                keep_what_they_name(self._store, self._marks, self._stored_again)
                self._stored_again.clear()
            for batch in _batches(self._unreached(page)):
                self._delete(page, batch)
            self._say(f"{page.kind}: {self._done.deleted.get(page.kind, Tally()).objects} deleted")
        done = self._done
        return SweepReport(run=self._plan.run, deleted=done.deleted, spared=done.spared, missing=done.missing)

    def _unreached(self, page: CandidatePage) -> Iterator[str]:
        try:
            data = read_page(self._store, page)
        except ObjectNotFoundError:
            return  # another collector has settled the run
        known = self._names.complete or page.kind not in ("commits", "objects")
        for digest, _ in rows_of(data):
            if known and not self._marks.keeps(page.kind, digest):
                yield key_of(page.kind, digest)
            else:
                self._done.spared += 1

    def _delete(self, page: CandidatePage, keys: list[str]) -> None:
        """Ask once more when each was stored, and delete those that are still old, at once."""
        old: list[ObjectInfo] = []
        for info in in_order(self._store.head, keys, WORKERS):
            if info is None:
                self._done.missing += 1
            elif not info.modified or info.modified >= self._oldest_young:
                self._done.spared += 1
                if page.kind in ("roots", "trees"):
                    self._stored_again.append(bytes.fromhex(info.key.rpartition("/")[2]))
            else:
                old.append(info)
        if not self._marker.fresh:
            raise CollectorStoppedError(self._plan.run)
        self._store.delete([info.key for info in old])
        tally = self._done.deleted.get(page.kind, Tally())
        self._done.deleted[page.kind] = Tally(
            objects=tally.objects + len(old), bytes=tally.bytes + sum(info.size for info in old)
        )


def _batches(keys: Iterator[str]) -> Iterator[list[str]]:
    while batch := list(islice(keys, BATCH)):
        yield batch


def _tidy(store: ObjectStore, times: SweepTimes) -> None:
    """Remove what dead writers and old collections left."""
    remove_lapsed(store, seconds=max(DAY, times.abandoned_seconds))
    remove_ended(store)
    now = store_time(store)
    for infos in run_objects(store).values():
        names = {info.key.rpartition("/")[2] for info in infos}
        age = now - max(info.modified for info in infos)
        if age > FORGET_DAYS * DAY or ("plan.json" not in names and age > DAY):
            store.delete([info.key for info in infos if not info.key.endswith("/done.json")])
            store.delete([info.key for info in infos])


def discard_older(store: ObjectStore, run: str) -> list[str]:
    """Settle every pending run before ``run`` without carrying it out; return them. One that is swept now stays."""
    older = [one for one in pending_runs(store) if one < run and not open_markers(store, one)]
    for one in older:
        settle(store, one, SweepReport(run=one, discarded=True))
    return older
