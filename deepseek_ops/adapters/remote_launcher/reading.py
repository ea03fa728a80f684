"""What can be read of a remote job, by anybody, at any time.

A look at a running job costs one listing, one small object and one question to the engine; at an ended one a listing
and, the first time, one object.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TypeVar

from pydantic import JsonValue

from deepseek_ops.adapters.remote_launcher.judging import Seen, judged
from deepseek_ops.adapters.remote_launcher.layout import (
    STARTED,
    Beat,
    Control,
    JobKeys,
    RemoteAttempt,
    RemoteResult,
    RemoteStop,
    read_control,
)
from deepseek_ops.core.errors import ObjectExistsError, ObjectNotFoundError
from deepseek_ops.core.jobs import EngineState, JobStatus
from deepseek_ops.core.ports import Engine, ObjectInfo, ObjectStore
from deepseek_ops.core.records import canonical_json

CANCEL_AFTER_SECONDS = 60.0
"""How long after its grace an agent that does not obey a stop is left to itself."""
_KEPT = 4096
_LOOKS = 5
T = TypeVar("T")


class JobReader:
    """Reads jobs, and remembers what never changes: attempts and their ends."""

    def __init__(self, store: ObjectStore, engine: Engine) -> None:
        self._store = store
        self._engine = engine
        self._attempts: dict[tuple[str, float], RemoteAttempt] = {}
        self._ends: dict[tuple[str, float], JobStatus] = {}

    def control(self, name: str) -> Control:
        """Return what the store shows of the job."""
        return read_control(self._store, JobKeys(name))

    def attempt(self, control: Control, number: int) -> RemoteAttempt:
        """Return an attempt that ``control`` shows. Raises ObjectNotFoundError when the job was retired meanwhile."""
        info = control.created[number]
        return _remembered(self._attempts, info, lambda: RemoteAttempt.load(self.get(info.key)))

    def status(
        self, name: str, *, control: Control | None = None, known: Mapping[str, EngineState] | None = None
    ) -> JobStatus | None:
        """Return the job's status, or None when there is no such job.

        ``known`` is what the engine has said of all its jobs; one that is not among them is asked for.
        """
        for _ in range(_LOOKS):
            control = control or self.control(name)
            if not control.newest:
                return None
            with suppress(ObjectNotFoundError):  # a beat was replaced, or the job was retired, since the listing
                return self._end(control) or self._live(name, control, known or {})
            control = None
        return None

    def get(self, key: str) -> dict[str, JsonValue]:
        """Return a JSON object of the store. Raises ObjectNotFoundError."""
        body: dict[str, JsonValue] = json.loads(self._store.get(key))
        return body

    def settle(self, status: JobStatus) -> JobStatus:
        """Store how an attempt ended unless that is known; return what is stored. From then on it cannot change."""
        key = JobKeys(status.name).of(status.attempt, "ended.json")
        try:
            self._store.create(key, canonical_json(status.dump()))
        except ObjectExistsError:
            return JobStatus.load(self.get(key))
        return status

    def _end(self, control: Control) -> JobStatus | None:
        info = control.files.get(control.newest, {}).get("ended.json")
        return None if info is None else _remembered(self._ends, info, lambda: JobStatus.load(self.get(info.key)))

    def _live(self, name: str, control: Control, known: Mapping[str, EngineState]) -> JobStatus:
        record = self.attempt(control, control.newest)
        number, engine = record.attempt, known.get(record.engine_id)
        while engine is None or engine.settled:
            noted = control.has(number, STARTED)
            engine = engine or self._engine.state(record.engine_id)
            if engine is not None and not engine.settled:
                break
            # What the agent wrote before its process ended may have come after the listing.
            control = self.control(name)
            end = self._end(control) or self._promoted(name, record)
            if end is not None:
                return end
            if engine is not None or noted or not control.has(number, STARTED):
                break
            # Started between the question and the listing: that the engine did not know it says nothing, ask again.
        seen = self._seen(name, control, record, engine)
        status = judged(seen, log=f"{self._store.uri}/{JobKeys(name).log}")
        self._enforce_stop(control, record, status)
        return status

    def _promoted(self, name: str, record: RemoteAttempt) -> JobStatus | None:
        """Write the end of an attempt whose agent was killed between its result and its end."""
        with suppress(ObjectNotFoundError):
            found = RemoteResult.load(self.get(JobKeys(name).result(record.attempt)))
            return self.settle(found.status)
        return None

    def _seen(self, name: str, control: Control, record: RemoteAttempt, engine: EngineState | None) -> Seen:
        keys, number, now = JobKeys(name), record.attempt, time.time()
        files = control.files.get(number, {})
        beat = control.newest_beat(number, 0)
        stop = "stop.json" in files
        over = engine is not None and engine.settled
        return Seen(
            record=record,
            engine=engine,
            beat=Beat.load(self.get(keys.of(number, beat))) if beat else None,
            beat_age=_age(files.get(beat), now),
            created_age=_age(control.created.get(number), now),
            started_age=_age(files[STARTED], now) if STARTED in files else None,
            claimed="claim.json" in files,
            stop_reason=RemoteStop.load(self.get(keys.of(number, "stop.json"))).reason if stop else "",
            last_words=_last_line(self._engine.tail(record.engine_id)) if over else "",
        )

    def _enforce_stop(self, control: Control, record: RemoteAttempt, status: JobStatus) -> None:
        """Have the engine end what does not obey a stop."""
        stop = control.files.get(record.attempt, {}).get("stop.json")
        patience = record.spec.grace_seconds + CANCEL_AFTER_SECONDS
        if stop is not None and not status.settled and _age(stop, time.time()) > patience:
            self._engine.cancel(record.engine_id, grace_seconds=record.spec.grace_seconds)


def _age(info: ObjectInfo | None, now: float) -> float:
    """Return how long ago the object was stored, in seconds; 0 where the store does not say."""
    return max(0.0, now - info.modified) if info is not None and info.modified else 0.0


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip()[:500] if lines else ""


def _remembered(cache: dict[tuple[str, float], T], info: ObjectInfo, read: Callable[[], T]) -> T:
    """Return what the object says, read once: it never changes, and a retired job's name is used with another stamp."""
    key = (info.key, info.modified)
    if key not in cache:
        if len(cache) >= _KEPT:
            cache.clear()
        cache[key] = read()
    return cache[key]
