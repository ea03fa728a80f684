"""Work in threads within a memory bound: hashing and transfers release the interpreter, so threads are enough.

Reading and hashing many small files is another matter: each takes the interpreter several times for microseconds, and
threads that fight over it cost more than they bring. ``READERS`` is how many of them pay.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Condition
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

CORES = len(os.sched_getaffinity(0))
READERS = max(1, min(4, CORES // 2))
"""Threads for work on small files; one means the calling thread."""


def in_order(work: Callable[[T], R], items: Iterable[T], workers: int) -> Iterator[R]:
    """Yield ``work`` of each item, in order, while threads work ahead by at most twice their number.

    ``items`` is read no further than that, so neither many inputs nor many results are held at once. The first failure
    cancels what has not begun, waits for what has, and is raised.
    """
    with ThreadPoolExecutor(workers, thread_name_prefix="data") as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def in_parallel(work: Callable[[T], R], items: Iterable[T], workers: int) -> list[R]:
    """Return ``work`` of each item, in order."""
    return list(in_order(work, items, workers))


def small_work(work: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield ``work`` of each item, in order: in this thread on a machine with few cores, in some threads otherwise."""
    return map(work, items) if READERS == 1 else in_order(work, items, READERS)


class MemoryBudget:
    """Bytes that threads may hold together."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._changed = Condition()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Hold so many bytes inside the block; waits for others. What is larger than all of it goes alone."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + size <= self._limit)
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()
