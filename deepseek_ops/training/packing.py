"""Packing samples of unequal length into windows: a pure function, so that every rank finds the same windows."""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

CHUNK = 8192
"""Samples that are sorted and packed together: bounds the work, and keeps windows from depending on far-away data."""


@dataclass(frozen=True, slots=True)
class Packing:
    """Which samples share a window: those of window ``i`` are ``order[starts[i] : starts[i + 1]]``."""

    order: array[int]
    starts: array[int]

    def __len__(self) -> int:
        return len(self.starts) - 1

    def window(self, number: int) -> array[int]:
        """Return the samples of a window, in the order they lie in it."""
        return self.order[self.starts[number] : self.starts[number + 1]]


def pack(sizes: Sequence[int], window: int) -> Packing:
    """Return how samples of these sizes fill windows of ``window`` places: best fit, longest first, chunk by chunk.

    Best fit needs at most 11/9 of the fewest windows possible (Johnson 1973); on conversations it fills more than 95 %.
    A size of 0 is left out. Sizes above ``window`` are the caller's mistake: ValueError.
    """
    order, starts = array("q"), array("q", [0])
    for begin in range(0, len(sizes), CHUNK):
        for members in _packed(begin, sizes[begin : begin + CHUNK], window):
            order.extend(members)
            starts.append(len(order))
    return Packing(order, starts)


def _packed(begin: int, sizes: Sequence[int], window: int) -> list[list[int]]:
    windows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free places, window), sorted
    for at in sorted(range(len(sizes)), key=lambda at: (-sizes[at], at)):
        size = int(sizes[at])
        if size == 0:
            continue
        if size > window:
            raise ValueError(f"sample {begin + at} has {size} places, a window {window}")
        found = bisect_left(room, (size, -1))
        if found < len(room):
            free, number = room.pop(found)
        else:
            free, number = window, len(windows)
            windows.append([])
        windows[number].append(begin + at)
        if free > size:
            insort(room, (free - size, number))
    return windows
