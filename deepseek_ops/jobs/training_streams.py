"""Metrics and events of a training, as JSON lines in the store while it runs: readable anywhere, no extra server.

A background thread writes one segment every few seconds under ``<run>/metrics/000000.jsonl``, ``000001.jsonl``, ...
Keys are create-only and numbers go on after a restart, so nothing is overwritten. After a kill the steps since the
last checkpoint run again and appear again with equal losses: readers keep the last row of a step.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self

from deepseek_ops.adapters.local_launcher.folder import plain
from deepseek_ops.core.errors import DeepSeekOpsError, ObjectExistsError

if TYPE_CHECKING:
    from deepseek_ops.core.ports import ObjectStore
    from deepseek_ops.jobs.context import JobContext

FLUSH_SECONDS = 3.0
MAX_HELD_ROWS = 100_000
"""Rows kept while the store is away; beyond that the oldest go, and their number is logged."""

_log = logging.getLogger(__name__)


class Segments:
    """One append-only stream of rows in numbered, write-once segments. ``append`` never waits for the store."""

    def __init__(self, store: ObjectStore, prefix: str) -> None:
        self.prefix = prefix.rstrip("/")
        self._store = store
        self._rows: list[bytes] = []
        self._lock = threading.Lock()
        self._flushing = threading.Lock()
        self._next: int | None = None
        self._dropped = 0

    def append(self, row: Mapping[str, object]) -> None:
        """Add a row; numbers that JSON lacks become strings ("NaN"), as in the job's own stream."""
        line = json.dumps(plain(row), separators=(",", ":"), ensure_ascii=False).encode()
        with self._lock:
            self._rows.append(line)
            if len(self._rows) > MAX_HELD_ROWS:
                del self._rows[0]
                self._dropped += 1

    def flush(self) -> None:
        """Write what is held as the next segment. The rows are kept when the store raises."""
        with self._flushing:
            with self._lock:
                rows, self._rows = self._rows, []
            if not rows:
                return
            try:
                self._create(b"".join(row + b"\n" for row in rows))
            except DeepSeekOpsError:
                with self._lock:
                    self._rows = rows + self._rows
                raise
            if self._dropped:
                _log.warning("%s: %d rows were dropped while the store was away", self.prefix, self._dropped)
                self._dropped = 0

    def _create(self, body: bytes) -> None:
        if self._next is None:
            self._next = self._first_free()
        while True:
            key = f"{self.prefix}/{self._next:06d}.jsonl"
            try:
                self._store.create(key, body)
            except ObjectExistsError:
                # Ours, if the answer to an earlier try was lost; another attempt's otherwise. Neither is overwritten.
                if self._store.get(key) != body:
                    self._next += 1
                    continue
            self._next += 1
            return

    def _first_free(self) -> int:
        last = -1
        for item in self._store.list(f"{self.prefix}/"):
            number = item.key.rpartition("/")[2].removesuffix(".jsonl")
            last = max(last, int(number)) if number.isdigit() else last
        return last + 1


class Streams:
    """What a training says: to the job's own stream at once, to the store every few seconds. Silent on other ranks.

    Use it as a context manager: leaving it writes the rest. A store that is away then is logged, not raised, because
    the result is written to the same store right before or after and decides by itself.
    """

    def __init__(self, context: JobContext, prefix: str, *, flush_seconds: float = FLUSH_SECONDS) -> None:
        self._context = context
        self._seconds = flush_seconds
        self._segments = (
            [Segments(context.store, f"{prefix}/{name}") for name in ("metrics", "events")] if context.rank == 0 else []
        )
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="training-streams", daemon=True)

    def metric(self, step: int, metrics: Mapping[str, float]) -> None:
        """Report the metrics of a step."""
        if self._segments:
            self._context.report(step=step, **metrics)
            self._segments[0].append({"step": step, **metrics})

    def event(self, kind: str, **fields: object) -> None:
        """Report an event."""
        if self._segments:
            self._context.event(kind, **fields)
            self._segments[1].append({"kind": kind, **fields})

    def __enter__(self) -> Self:
        if self._segments:
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        if self._segments:
            self._thread.join()
            self._flush()

    def _run(self) -> None:
        while not self._ended.wait(self._seconds):
            self._flush()

    def _flush(self) -> None:
        for segments in self._segments:
            try:
                segments.flush()
            except DeepSeekOpsError as error:
                _log.warning("%s is not written yet: %s", segments.prefix, error)
