"""Which batch an optimiser step trains on when some are left out: a pure function of the step and what is left out.

Batch *positions* number the batches of the run's data in their order; a step takes the next position that is not left
out. Leaving positions out later moves no step before them, so what was trained on stays as it was.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Ranges = Sequence[tuple[int, int]]
"""Half-open ranges (first, end) of positions, sorted, apart from each other."""


def position_of(step: int, skipped: Ranges) -> int:
    """Return the batch position of optimiser step ``step`` (from 0): the ``step``-th that is not left out."""
    position = step
    for first, end in skipped:
        if first > position:
            break
        position += end - first
    return position


def united(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the same positions as sorted ranges that neither overlap nor touch; empty ranges go."""
    merged: list[tuple[int, int]] = []
    for first, end in sorted(pair for pair in ranges if pair[1] > pair[0]):
        if merged and first <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((first, end))
    return merged


def next_positions(after: int, count: int, skipped: Ranges) -> list[tuple[int, int]]:
    """Return the ranges of the next ``count`` positions behind ``after`` that are not left out yet."""
    found: list[tuple[int, int]] = []
    position = after + 1
    for first, end in [*(pair for pair in skipped if pair[1] > position), (-1, -1)]:
        stop = position + count if first < 0 else min(position + count, max(first, position))
        if stop > position:
            found.append((position, stop))
            count -= stop - position
        if not count:
            break
        position = end
    return found


def count_of(ranges: Ranges, *, below: int | None = None) -> int:
    """Return how many positions the ranges hold, all or those below ``below``."""
    return sum(max(0, (end if below is None else min(end, below)) - first) for first, end in ranges)
