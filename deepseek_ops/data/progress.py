"""Telling people how far a long transfer is: files and bytes done, at most ten times a second."""

from __future__ import annotations

import time
from threading import Lock

from deepseek_ops.core.ports import Progress

INTERVAL_SECONDS = 0.1
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


class Meter:
    """Adds up what threads have done and passes it on. Without a listener it does nothing.

    Totals may grow while the work goes on (a folder is still being read); without any the fraction is not known.
    """

    def __init__(self, progress: Progress | None, verb: str, *, files: int = 0, num_bytes: int = 0) -> None:
        self._progress = progress
        self._verb = verb
        self._lock = Lock()
        self._files = [0, files]
        self._bytes = [0, num_bytes]
        self._next = 0.0

    def expect(self, files: int, num_bytes: int) -> None:
        """Add to the totals."""
        if self._progress is not None:
            with self._lock:
                self._files[1] += files
                self._bytes[1] += num_bytes

    def add(self, files: int, num_bytes: int) -> None:
        """Count what is done; the listener hears of it unless it has just heard something."""
        if self._progress is None:
            return
        with self._lock:
            self._files[0] += files
            self._bytes[0] += num_bytes
            now = time.monotonic()
            if now >= self._next:
                self._next = now + INTERVAL_SECONDS
                self._progress(self._line(), self._fraction())

    def finish(self) -> None:
        """Say the last word, whenever the one before was said."""
        if self._progress is not None:
            with self._lock:
                self._progress(self._line(), 1.0)

    def _line(self) -> str:
        (files, all_files), (size, all_bytes) = self._files, self._bytes
        if not all_files:
            return f"{self._verb} {files:,} files, {readable(size)}"
        return f"{self._verb} {files:,} of {all_files:,} files, {readable(size)} of {readable(all_bytes)}"

    def _fraction(self) -> float | None:
        done, total = self._bytes if self._bytes[1] else self._files
        return min(done / total, 1.0) if total else None


def readable(size: int) -> str:
    """Return a size as people read it, such as ``1.5 MiB``."""
    value = float(size)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
