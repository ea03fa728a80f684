"""Metrics, events and telemetry of a training, in the store while it runs: readable anywhere, no extra server.

A background thread writes what was reported as one segment (``training/streams.py`` has the format and the reader):
soon after an event, and otherwise every 3 s in the first minutes of a process, every 30 s after an hour. 64 segments
are joined into one object, so a week of training is a few hundred objects. Numbers go on after a restart and nothing
is overwritten. After a kill the steps since the last checkpoint run again and appear again; readers keep the last. What
a killed process had not sent is on its disk (``spool.py``) and is sent first by the one that takes its place.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self

from pydantic import JsonValue

from deepseek_ops.adapters.local_launcher.folder import plain
from deepseek_ops.core.errors import DeepSeekOpsError, ObjectExistsError, ObjectNotFoundError
from deepseek_ops.jobs.mirrors import Mirrors
from deepseek_ops.jobs.spool import Spool
from deepseek_ops.jobs.telemetry import Telemetry
from deepseek_ops.training.streams import EVENTS, METRICS, TELEMETRY, numbers_of, pack, segment_name

if TYPE_CHECKING:
    from deepseek_ops.core.ports import ObjectStore
    from deepseek_ops.jobs.context import JobContext

FLUSH_SECONDS = 3.0
SLOWEST_FLUSH_SECONDS = 30.0
EVENT_SECONDS = 0.5
"""An event is written this long after it was reported, with what comes in between."""
JOINED = 64
"""Segments that are joined into one object."""
MAX_HELD_ROWS = 100_000
"""Rows kept while the store is away; beyond that the oldest go, and their number is logged."""
MAX_SEGMENT_ROWS = 10_000
SPOOLS = "streams"
"""Folder in the job's work folder with what is not in the store yet."""

_LOOKED_AT = 4

_log = logging.getLogger(__name__)


class Segments:
    """One append-only stream of rows in numbered, write-once segments. ``append`` never waits for the store.

    With a ``spool`` the rows outlive this process, and those of the one before it are sent first.
    """

    def __init__(self, store: ObjectStore, prefix: str, *, attempt: int = 1, spool: Spool | None = None) -> None:
        self.prefix = prefix.rstrip("/")
        self._store = store
        self._attempt = attempt
        self._spool = spool
        sent, held = spool.recover() if spool is not None else ([], [])
        self._rows: deque[bytes] = deque(held, maxlen=MAX_HELD_ROWS)
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._pending: deque[bytes] = deque(_segments(sent))
        """Segments that may or may not have reached the store: sent again as they are, so that each is there once."""
        self._inherited = len(self._pending)
        """Pending segments that another process may have stored."""
        self._tried: int | None = None
        """The number that the first of them was sent as."""
        self._last = -1
        self._own: list[tuple[int, bytes]] = []
        """What this writer wrote since it last joined, in numbers that follow each other."""
        self._dropped = 0

    def append(self, row: Mapping[str, object]) -> None:
        """Add a row; numbers that JSON lacks become strings ("NaN"), as in the job's own stream."""
        line = _line({**row, "at": round(time.time(), 3), "attempt": self._attempt})
        with self._lock:
            self._dropped += len(self._rows) == MAX_HELD_ROWS
            self._rows.append(line)
            if self._spool is not None:
                self._spool.append(line)

    def flush(self) -> None:
        """Write what is held as the next segments. The rows are kept when the store raises."""
        with self._flushing:
            while self._pending or self._rows:
                if not self._pending:
                    self._take()
                while self._pending:
                    if not (self._inherited and self._is_among_the_last(self._pending[0])):
                        self._create(self._pending[0])
                    self._pending.popleft()
                    self._inherited = max(0, self._inherited - 1)
                if self._spool is not None:
                    self._spool.sent()
                if len(self._own) >= JOINED:
                    self._join()
            if self._dropped:
                _log.warning("%s: %d rows were dropped while the store was away", self.prefix, self._dropped)
                self._dropped = 0

    def close(self) -> None:
        """Write the rest and join what is not joined yet."""
        self.flush()
        with self._flushing:
            if len(self._own) > 1:
                self._join()

    def _take(self) -> None:
        """Make segments of all rows that are held."""
        with self._lock:
            rows = list(self._rows)
            self._rows.clear()
            if self._spool is not None:
                self._spool.seal()
        self._pending.extend(_segments(rows))

    def _create(self, body: bytes) -> None:
        number = self._tried
        if number is None or self._stored(number) != body:  # else an earlier try succeeded and its answer was lost
            number = self._first_free()
            while not self._created(number, body):
                number += 1
        self._tried = None
        self._keep(number, body)

    def _is_among_the_last(self, body: bytes) -> bool:
        """Return whether the process before this one stored the segment and was killed before it could note that."""
        items = [item for item in self._store.list(f"{self.prefix}/") if item.size == len(body)]
        return any(self._store.get(item.key) == body for item in items[-_LOOKED_AT:])

    def _created(self, number: int, body: bytes) -> bool:
        self._tried = number
        try:
            self._store.create(f"{self.prefix}/{segment_name(number)}", body)
        except ObjectExistsError:  # another attempt's, which still runs or has just begun: it is not overwritten
            return False
        return True

    def _stored(self, number: int) -> bytes | None:
        try:
            return self._store.get(f"{self.prefix}/{segment_name(number)}")
        except ObjectNotFoundError:
            return None

    def _keep(self, number: int, body: bytes) -> None:
        if number != self._last + 1:
            self._own = []
        self._own.append((number, body))
        self._last = number

    def _join(self) -> None:
        """Put the segments of this writer together; when the store refuses, they stay as they are."""
        own, self._own = self._own, []
        name = segment_name(own[-1][0], first=own[0][0])
        try:
            self._store.create(f"{self.prefix}/{name}", b"".join(body for _, body in own))
            self._store.delete([f"{self.prefix}/{segment_name(number)}" for number, _ in own])
        except DeepSeekOpsError as error:
            _log.info("%s: segments %s are not joined: %s", self.prefix, name, error)

    def _first_free(self) -> int:
        """Return the number of the next segment, after looking: a number that was joined must not be used again."""
        start = f"{self.prefix}/{segment_name(self._last)}" if self._last >= 0 else ""
        items = self._store.list(f"{self.prefix}/", start_after=start)
        found = [numbers_of(item.key.rpartition("/")[2]) for item in items]
        return 1 + max((numbers[1] for numbers in found if numbers is not None), default=self._last)


def _kept_segments(context: JobContext, prefix: str) -> Segments:
    spool = Spool(context.work / SPOOLS, prefix.replace("/", "-"))
    return Segments(context.store, prefix, attempt=context.attempt, spool=spool)


def _segments(rows: list[bytes]) -> list[bytes]:
    """Return the rows as packed segments; equal rows give equal segments."""
    return [pack(rows[start : start + MAX_SEGMENT_ROWS]) for start in range(0, len(rows), MAX_SEGMENT_ROWS)]


def _line(row: Mapping[str, object]) -> bytes:
    return json.dumps(plain(row), separators=(",", ":"), ensure_ascii=False).encode()


class Streams:
    """What a training says: to the job's own stream at once, to the store every few seconds. Silent on other ranks.

    The first rank of every node watches its machine besides. Use it as a context manager: leaving it writes the rest.
    A store that is away then is logged, not raised, because the result is written to the same store right before or
    after and decides by itself.
    """

    def __init__(self, context: JobContext, prefix: str, *, flush_seconds: float = FLUSH_SECONDS) -> None:
        self._context = context
        self._seconds = flush_seconds
        self._first = context.rank == 0
        self._segments = (
            {name: _kept_segments(context, f"{prefix}/{name}") for name in (METRICS, EVENTS)} if self._first else {}
        )
        self._written = list(self._segments.values())
        self._telemetry: Telemetry | None = None
        if int(os.environ.get("LOCAL_RANK", context.rank)) == 0:
            node = int(os.environ.get("GROUP_RANK", "0"))
            rows = Segments(context.store, f"{prefix}/{TELEMETRY}/{node:04d}", attempt=context.attempt)
            self._telemetry = Telemetry(rows.append, self._say, node=node)
            self._written.append(rows)
        self._mirrors = Mirrors.from_environment(os.environ, context.work, self._say) if self._first else None
        self._ended = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="training-streams", daemon=True)

    def metric(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report the metrics of a step."""
        if self._first:
            self._context.report(step=step, **metrics)
            self._segments[METRICS].append({"step": step, **metrics})
            if self._mirrors is not None:
                self._mirrors.put(step, metrics)

    def event(self, kind: str, **fields: object) -> None:
        """Report an event."""
        if self._first:
            self._say(kind, fields)

    def detail(self, kind: str, step: int, fields: Mapping[str, JsonValue]) -> None:
        """Report what is too long for a metric, such as the load of every expert: in the store's events only."""
        if self._first:
            self._segments[EVENTS].append({"kind": kind, "step": step, **fields})

    def settle(self) -> None:
        """Write what was reported so far and return when it is in the store. Raises what the store raises."""
        for segments in self._segments.values():
            segments.flush()

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            for part in (self._telemetry, self._mirrors):
                if part is not None:
                    undo.enter_context(part)
            if self._written:
                self._thread.start()
                undo.callback(self._end_thread)
            self._parts = undo.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._parts.close()
        for segments in self._written:
            self._kept(segments, last=True)

    def _say(self, kind: str, fields: Mapping[str, object]) -> None:
        self._context.event(kind, **fields)
        if self._first:
            self._segments[EVENTS].append({"kind": kind, **fields})
            self._wake.set()

    def _end_thread(self) -> None:
        self._ended = True
        self._wake.set()
        self._thread.join()

    def _run(self) -> None:
        began = written = time.monotonic()
        while not self._ended:
            pause = max(self._seconds, min((written - began) / 120, SLOWEST_FLUSH_SECONDS))
            if self._wake.wait(pause) and not self._ended:
                time.sleep(min(EVENT_SECONDS, self._seconds))
            self._wake.clear()
            for segments in self._written:
                self._kept(segments)
            written = time.monotonic()

    @staticmethod
    def _kept(segments: Segments, *, last: bool = False) -> None:
        try:
            segments.close() if last else segments.flush()
        except DeepSeekOpsError as error:
            _log.warning("%s is not written yet: %s", segments.prefix, error)
