"""Lengths of many records in a small histogram, and how far two of them are apart.

Bins are exact up to 128 and then grow by 1.6% at most, so a quantile is right within 1.6% and a histogram has at most
some 2,000 bins however many records it counts.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping

EXACT = 64
_PER_OCTAVE = 64
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)


def bin_of(length: int) -> int:
    """Return the number of the bin of a length."""
    if length < EXACT:
        return length
    octave = length.bit_length() - 7
    return EXACT + octave * _PER_OCTAVE + ((length - (EXACT << octave)) >> octave)


def least_of(number: int) -> int:
    """Return the least length in a bin."""
    if number < EXACT:
        return number
    octave, step = divmod(number - EXACT, _PER_OCTAVE)
    return (EXACT << octave) + (step << octave)


class Lengths:
    """A histogram of lengths."""

    def __init__(self, bins: Mapping[int, int] | None = None) -> None:
        self.bins: Counter[int] = Counter(bins or {})

    def add(self, length: int) -> None:
        """Count one length."""
        self.bins[bin_of(length)] += 1

    def add_all(self, lengths: Iterable[int]) -> None:
        """Count lengths."""
        self.bins.update(map(bin_of, lengths))

    @property
    def count(self) -> int:
        return sum(self.bins.values())

    def quantiles(self) -> dict[str, int]:
        """Return length by quantile (``p50`` is the median), the least and the largest; empty for no records."""
        total, below, found = self.count, 0, {}
        wanted = [("p0", 0.0), *((f"p{share * 100:g}", share) for share in QUANTILES), ("p100", 1.0)]
        for number in sorted(self.bins):
            below += self.bins[number]
            while wanted and below >= max(1, math.ceil(wanted[0][1] * total)):
                found[wanted.pop(0)[0]] = least_of(number)
        return found

    def distances(self, other: Lengths) -> dict[str, float]:
        """Return ``ks`` (largest gap between the distribution functions, 0 to 1) and ``wasserstein`` (mean shift in
        the unit of the lengths); empty when either has no record."""
        mine, theirs = self.count, other.count
        if not mine or not theirs:
            return {}
        numbers = sorted(self.bins.keys() | other.bins.keys())
        gap = ks = moved = 0.0
        for at, number in enumerate(numbers):
            if at:
                moved += abs(gap) * (least_of(number) - least_of(numbers[at - 1]))
            gap += self.bins.get(number, 0) / mine - other.bins.get(number, 0) / theirs
            ks = max(ks, abs(gap))
        return {"ks": round(ks, 6), "wasserstein": round(moved, 3)}

    def dump(self) -> dict[str, int]:
        """Return the histogram as JSON: least length of a bin -> records."""
        return {str(least_of(number)): self.bins[number] for number in sorted(self.bins)}

    @classmethod
    def load(cls, body: Mapping[str, object]) -> Lengths:
        """Return the histogram that ``dump`` wrote."""
        return cls({bin_of(int(length)): int(str(count)) for length, count in body.items()})
