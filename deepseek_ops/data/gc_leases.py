"""The writer's half of the protocol that ``gc_guard`` describes: a lease, and which sweeps its holder knows.

::

    leases/writers/<id>          somebody writes; kept fresh while it does
    leases/seen/<id>/<marker>    this writer knows the sweep with this marker and touches none of its candidates
"""

from __future__ import annotations

import json
import logging
import secrets
import threading
import time
from dataclasses import dataclass

from pydantic import JsonValue

from deepseek_ops.core.errors import ObjectExistsError, ObjectNotFoundError, StoreUnavailableError, TransientError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.data.gc_clock import SLACK, Heartbeat, store_time
from deepseek_ops.data.gc_runs import OPEN, Candidates, Kind, is_abandoned, kind_of, open_markers, read_plan, run_of

logger = logging.getLogger(__name__)

WRITERS = "leases/writers/"
SEEN = "leases/seen/"
PIN_SECONDS = 7 * 24 * 3600.0


@dataclass(frozen=True)
class GuardTimes:
    """How long writers are believed and wait, in seconds of the store's clock."""

    lease_seconds: float = 300.0
    """A writer that has not renewed its lease for so long is held for dead."""
    wait_seconds: float = 1800.0
    """How long a writer waits for a sweep that is about to delete what it needs."""
    poll_seconds: float = 1.0
    pin_seconds: float = PIN_SECONDS
    """How long objects that were found, not stored, stay after the writer has returned their digests."""


DEFAULT_TIMES = GuardTimes()


@dataclass(eq=False)
class SweepUnderWayError(TransientError):
    """A collection is about to delete something that a writer needs, and takes long."""

    run: str
    key: str
    seconds: float

    def __str__(self) -> str:
        return (
            f"collection {self.run} may delete {self.key} and was not over after {self.seconds:.0f} s; "
            "try again later, or end it with `deepseek-ops data gc --delete` if its process has died."
        )


class Lease:
    """A writer's lease, from its creation on. Thread-safe."""

    def __init__(self, store: ObjectStore, holder: str, times: GuardTimes) -> None:
        self._store = store
        self._times = times
        self._id = secrets.token_hex(12)
        self._sweeps: dict[str, Candidates] = {}
        """By the key of their marker."""
        self._notes: set[str] = set()
        self._lock = threading.Lock()
        body: dict[str, JsonValue] = {"holder": holder, "seconds": times.lease_seconds}
        self._heartbeat = Heartbeat(store, f"{WRITERS}{self._id}", body, seconds=times.lease_seconds)
        self._heartbeat.start()
        for marker in open_markers(store):  # after the lease is there, never before: see gc_guard
            self._see(marker.key)

    @property
    def key(self) -> str:
        return self._heartbeat.key

    def covers(self, moment: float) -> bool:
        """Return whether nobody can have held the writer for dead at this time of the store's clock."""
        return self._heartbeat.covers(moment)

    def release(self) -> None:
        """Give the lease up; one that cannot be removed lapses."""
        self._heartbeat.end()
        try:
            self._store.delete([*self._notes, self.key])
        except StoreUnavailableError as error:
            logger.warning("lease %s stays until it lapses: %s", self.key, error)

    def wait_for(self, key: str) -> tuple[Kind, bytes] | None:
        """Return what a key names, once no sweep that we know is about to delete it. Raises SweepUnderWayError."""
        named = kind_of(key)
        if named is None or not self._sweeps:
            return named
        with self._lock:
            for marker in list(self._sweeps):
                if marker in self._sweeps and self._wants(marker, named):
                    self._outlive(run_of(marker), key)
        return named

    def _wants(self, marker: str, named: tuple[Kind, bytes]) -> bool:
        try:
            return named in self._sweeps[marker]
        except ObjectNotFoundError:
            return True  # the candidates are removed when a sweep is over: its marker tells

    def _note(self, marker: str) -> str:
        return seen_key(self._id, marker)

    def _see(self, marker: str) -> None:
        """Learn a sweep's candidates, and only then say that we know them."""
        try:
            candidates = Candidates(self._store, read_plan(self._store, run_of(marker))[0])
        except ObjectNotFoundError:
            return  # over since the marker was listed
        self._sweeps[marker] = candidates
        self._notes.add(self._note(marker))
        try:
            self._store.create(self._note(marker), b"{}")
        except ObjectExistsError:
            return

    def _outlive(self, run: str, key: str) -> None:
        """Return when every sweep of the run is over or abandoned."""
        limit = time.monotonic() + self._times.wait_seconds
        while markers := {info.key for info in open_markers(self._store, run)}:
            for marker in markers - self._sweeps.keys():
                self._see(marker)
            if all(is_abandoned(self._store, marker) for marker in markers):
                self._store.delete([self._note(marker) for marker in markers])
                # A collector that takes over from here on finds a lease without a note, and waits for us.
                if {info.key for info in open_markers(self._store, run)} <= markers:
                    break
                for marker in markers:
                    self._see(marker)
            if time.monotonic() > limit:
                raise SweepUnderWayError(run, key, self._times.wait_seconds)
            time.sleep(self._times.poll_seconds)
        for marker in [marker for marker in self._sweeps if run_of(marker) == run]:
            del self._sweeps[marker]


def seen_key(lease: str, marker: str) -> str:
    """Return the key of a writer's note that it knows the sweep with this marker."""
    return f"{SEEN}{lease}/{marker.removeprefix(OPEN)}"


def writers_unaware_of(store: ObjectStore, marker: str) -> list[str]:
    """Return who writes, is alive, and may not know of the sweep with this marker, as text for people."""
    now = store_time(store)
    found: list[str] = []
    for info in store.list(WRITERS):  # after the time was asked for: see gc_clock
        lease = info.key.removeprefix(WRITERS)
        try:
            body = json.loads(store.get(info.key))
        except ObjectNotFoundError:
            continue  # released since
        if now - info.modified > float(body["seconds"]) * (1 + SLACK):
            continue  # lapsed: its holder will notice
        if store.head(seen_key(lease, marker)) is None:
            found.append(f"{body['holder']} ({lease})")
    return found


def remove_lapsed(store: ObjectStore, *, seconds: float) -> int:
    """Remove what writers who died ``seconds`` ago left behind; return how many there were."""
    now = store_time(store)
    dead = [info.key for info in store.list(WRITERS) if now - info.modified > seconds]
    alive = {info.key.removeprefix(WRITERS) for info in store.list(WRITERS)} - {
        key.removeprefix(WRITERS) for key in dead
    }
    notes = [
        info.key
        for info in store.list(SEEN)
        if now - info.modified > seconds and info.key.removeprefix(SEEN).partition("/")[0] not in alive
    ]
    store.delete(dead)
    store.delete(notes)
    return len(dead)
