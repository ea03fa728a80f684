"""Who gets which variant: sticky, reproducible, and monotone while a share grows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from deepseek_ops.core.errors import PermanentError

BUCKETS = 10_000
"""A bucket is a hundredth of a percent of the units."""


@dataclass(eq=False)
class InvalidSharesError(PermanentError):
    """Shares that cannot be given out."""

    shares: tuple[tuple[str, float], ...]
    problem: str

    def __str__(self) -> str:
        given = ", ".join(f"{variant}={percent}%" for variant, percent in self.shares)
        return f"traffic shares {given}: {self.problem}; give each variant 0 to 100 %, at most 100 % together."


def bucket(unit: str, salt: str) -> int:
    """Return the unit's bucket, 0 to 9999, uniform over units and independent between salts.

    Give every experiment a salt of its own: with a shared one the same people would always be the first to get the
    new thing, and one experiment's effect would show up in the next.
    """
    digest = hashlib.sha256(f"{len(salt)}:{salt}:{unit}".encode()).digest()
    return int.from_bytes(digest[:8], "big") % BUCKETS


def assign(unit: str, *, salt: str, control: str, shares: Mapping[str, float]) -> str:
    """Return the variant that the unit gets: one of ``shares``, or ``control`` for the rest.

    Variants take the lowest buckets, in the order of ``shares``. While the last variant's share grows, units move from
    control to it and none moves back; with one variant that is always so. A variant that grows before others pushes
    them up, so grow the last one, or use an experiment (a salt) per variant.

    Args:
        unit: Id of a user or session; the same id always gets the same answer.
        salt: The experiment's own, such as its name.
        control: Variant of everybody else.
        shares: Variant -> percent of all units, rounded to whole buckets (0.01 %).

    Raises:
        InvalidSharesError: A share is negative or not finite, or they sum to more than 100 %.
    """
    mine, end = bucket(unit, salt), 0
    for variant, buckets in _widths(shares).items():
        end += buckets
        if mine < end:
            return variant
    return control


def _widths(shares: Mapping[str, float]) -> dict[str, int]:
    given = tuple(shares.items())
    if any(not 0 <= percent <= 100 for percent in shares.values()):
        raise InvalidSharesError(given, "a share is not a percentage")
    widths = {variant: round(percent * BUCKETS / 100) for variant, percent in shares.items()}
    if sum(widths.values()) > BUCKETS:
        raise InvalidSharesError(given, "they are more than everything")
    return widths
