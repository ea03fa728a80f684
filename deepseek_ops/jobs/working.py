"""Saying "alive" for work that takes as long as it takes, for as long as it gets on.

Fetching a checkpoint of a terabyte, or cutting it for another number of ranks, is one call of an hour without a word.
A thread looks whether this process has computed or moved bytes since it last looked, and only then says so: a store
that no longer answers is silent, and found.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from deepseek_ops.jobs.progress import ProgressPage

LOOK_SECONDS = 10.0
CPU_SHARE = 0.1
"""Of one core, between two looks; telemetry and logging need a hundredth."""
MOVED_BYTES = 4 << 20
"""Read and written by calls of the kernel's, between two looks."""
_IO = Path("/proc/self/io")


class Working:
    """A block in which a page is touched while this process gets on; it says nothing where nothing was ever said."""

    def __init__(self, page: ProgressPage, *, every: float = LOOK_SECONDS) -> None:
        self._page = page
        self._every = every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="working", daemon=True)

    def __enter__(self) -> Self:
        if self._page.pulse is not None:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        seconds, moved = time.process_time(), _moved_bytes()
        while not self._over.wait(self._every):
            now, there = time.process_time(), _moved_bytes()
            if now - seconds > CPU_SHARE * self._every or there - moved > MOVED_BYTES:
                self._page.touch()
            seconds, moved = now, there


def _moved_bytes() -> int:
    """Return the bytes that this process has read and written; 0 where the kernel does not tell."""
    try:
        fields = dict(line.split(": ") for line in _IO.read_text().splitlines())
        return int(fields["rchar"]) + int(fields["wchar"])
    except (OSError, KeyError, ValueError):
        return 0
