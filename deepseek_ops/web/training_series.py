"""One number over a whole training, in bounded memory, ready to be drawn.

The newest TAIL to 2 x TAIL points are kept as they are, so that a rewind takes back exactly what it undoes. Older ones
become buckets of equally many points with their least, greatest and mean value: no spike is lost, and a bucket that a
rewind cuts through is dropped as a whole. More than MAX_BUCKETS of them are joined in pairs. A series is therefore at
most 2 x TAIL x 16 bytes and MAX_BUCKETS records, however long the training is.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

TAIL = 4096
MAX_BUCKETS = 1024
_FIRST_WIDTH = 8


@dataclass(slots=True)
class Bucket:
    """Points that follow each other. ``at`` is a step or a time."""

    first: float
    last: float
    low: float = math.inf
    high: float = -math.inf
    total: float = 0.0
    count: int = 0
    """Of finite points; low, high and total are theirs."""
    bad: int = 0
    """Points that were NaN or infinite."""
    bad_at: float = math.nan
    """The first of them."""

    def add(self, at: float, value: float) -> None:
        """Take one more point in."""
        self.last = at
        if math.isfinite(value):
            self.low, self.high = min(self.low, value), max(self.high, value)
            self.total += value
            self.count += 1
        else:
            self.bad_at = self.bad_at if self.bad else at
            self.bad += 1

    def extend(self, ats: Sequence[float], values: Sequence[float]) -> None:
        """Take more points in, fast where all of them are finite."""
        total = sum(values)
        if not math.isfinite(total):
            for at, value in zip(ats, values, strict=True):
                self.add(at, value)
            return
        self.last = ats[-1]
        self.low, self.high = min(self.low, *values), max(self.high, *values)
        self.total += total
        self.count += len(values)

    def join(self, other: Bucket) -> None:
        """Take in a bucket that comes later."""
        self.last = other.last
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.total += other.total
        self.count += other.count
        self.bad_at = self.bad_at if self.bad else other.bad_at
        self.bad += other.bad

    @property
    def size(self) -> int:
        return self.count + self.bad

    @property
    def mean(self) -> float:
        return self.total / self.count if self.count else math.nan


class Series:
    """Points in the order of their step or time."""

    def __init__(self, *, tail: int = TAIL, buckets: int = MAX_BUCKETS) -> None:
        self._tail, self._max = tail, buckets
        self._at = array("d")
        self._values = array("d")
        self._buckets: list[Bucket] = []
        self._width = _FIRST_WIDTH

    def __bool__(self) -> bool:
        return bool(self._at or self._buckets)

    def add(self, at: float, value: float) -> None:
        """Append a point that comes after all others."""
        self._at.append(at)
        self._values.append(value)
        if len(self._at) >= 2 * self._tail:
            self._fold()

    def cut(self, at: float) -> None:
        """Forget everything from ``at`` on."""
        place = bisect_left(self._at, at)
        del self._at[place:], self._values[place:]
        while self._buckets and self._buckets[-1].last >= at:
            self._buckets.pop()

    @property
    def last(self) -> float | None:
        """The newest value."""
        return self._values[-1] if self._values else None

    @property
    def ends(self) -> tuple[float, float] | None:
        """Where the first and the newest point are; None without points."""
        if not self:
            return None
        first = self._buckets[0].first if self._buckets else self._at[0]
        return first, self._at[-1] if self._at else self._buckets[-1].last

    def recent(self, count: int) -> list[float]:
        """Return the newest values, at most TAIL of them, oldest first."""
        return list(self._values[-count:])

    def columns(self, first: float, last: float, count: int) -> list[Bucket]:
        """Return at most ``count`` + 1 buckets of equal width over [first, last]; empty ones are left out."""
        span = (last - first) or 1.0
        found: list[Bucket] = []
        place = -1
        for item in self._items():
            own = int((item.first - first) / span * count)
            if own == place and found:
                found[-1].join(item)
            else:
                found.append(item)
            place = own
        return found

    def _items(self) -> Iterator[Bucket]:
        for bucket in self._buckets:
            yield Bucket(**{name: getattr(bucket, name) for name in Bucket.__slots__})
        for at, value in zip(self._at, self._values, strict=True):
            item = Bucket(at, at)
            item.add(at, value)
            yield item

    def _fold(self) -> None:
        """Turn the oldest TAIL points into buckets."""
        place = 0
        while place < self._tail:
            if not self._buckets or self._buckets[-1].size >= self._width:
                self._buckets.append(Bucket(self._at[place], self._at[place]))
            stop = min(place + self._width - self._buckets[-1].size, self._tail)
            self._buckets[-1].extend(self._at[place:stop], self._values[place:stop])
            place = stop
        del self._at[: self._tail], self._values[: self._tail]
        while len(self._buckets) > self._max:
            self._width *= 2
            pairs = zip(self._buckets[::2], [*self._buckets[1::2], None], strict=False)
            joined = []
            for left, right in pairs:
                if right is not None:
                    left.join(right)
                joined.append(left)
            self._buckets = joined
