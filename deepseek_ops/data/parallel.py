"""Work in threads within a memory bound: hashing and transfers release the interpreter, so threads are enough."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_parallel(work: Callable[[T], R], items: Iterable[T], workers: int) -> list[R]:
    """Return ``work`` of each item, in order.

    ``items`` is read only a few ahead of the work, so a generator of large values is never held as a whole. The first
    failure cancels what has not begun, waits for what has, and is raised.
    """
    results: list[R] = []
    with ThreadPoolExecutor(workers, thread_name_prefix="data") as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= 4 * workers:
                    results.append(waiting.popleft().result())
            results.extend(future.result() for future in waiting)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return results
