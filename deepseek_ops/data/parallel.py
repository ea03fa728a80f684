"""Work in threads within a memory bound: hashing and transfers release the interpreter, so threads are enough."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


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
