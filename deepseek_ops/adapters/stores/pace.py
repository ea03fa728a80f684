"""How many requests a store has under way, and how long it waits when the server asks for less.

A server that is too busy says so (503 SlowDown, 429). More of the same makes it worse for everybody, so the number of
requests under way is halved then and grows again by one for each round that went well.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition

MOST_REQUESTS = 64
BUSY_TRIES = 4
"""How often one request is sent to a server that is busy, each time after its client's own quick tries."""
BUSY_SECONDS = 1.0
"""First pause; each further one is up to twice as long."""
BUSY_STATUS = (429, 500, 502, 503, 504)
"""SlowDown, and what a server says that starts or fails over, which takes longer than the client's own tries."""
_ROUND_SECONDS = 0.5
"""Refusals this close together are one: they answer requests sent before we slowed down."""


class Pace:
    """A limit on the requests of one store. Safe for use by many threads; a request must not start another inside."""

    def __init__(self, most: int = MOST_REQUESTS) -> None:
        self._most = most
        self._limit = float(most)
        self._running = 0
        self._slowed_at = 0.0
        self._room = Condition()

    @property
    def limit(self) -> int:
        """Requests that may be under way now."""
        return int(self._limit)

    @contextmanager
    def request(self) -> Iterator[None]:
        """Wait for room, and hold it for the block."""
        with self._room:
            self._room.wait_for(lambda: self._running < self.limit)
            self._running += 1
        try:
            yield
        finally:
            with self._room:
                self._running -= 1
                self._room.notify_all()

    def went_well(self) -> None:
        """Allow a little more: one request more after as many as the limit."""
        with self._room:
            self._limit = min(self._limit + 1 / self._limit, self._most)

    def slow_down(self, attempt: int) -> None:
        """Allow half, and wait: before the second try about a second, longer before each further one."""
        with self._room:
            now = time.monotonic()
            if now - self._slowed_at > _ROUND_SECONDS:
                self._slowed_at = now
                self._limit = max(self._limit / 2, 1.0)
        time.sleep(jittered(BUSY_SECONDS, attempt))


def jittered(seconds: float, attempt: int) -> float:
    """Return a random pause, between half and all of ``seconds`` doubled ``attempt`` times."""
    return seconds * float(2**attempt) * random.uniform(0.5, 1.0)  # noqa: S311
