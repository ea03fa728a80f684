"""Which split a piece of content belongs to, decided by the content itself."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

from deepseek_ops.core.errors import PermanentError

_SALT = b"deepseek-ops split/1\0"


@dataclass(eq=False)
class SplitWeightsError(PermanentError):
    """Shares that give no split to anything."""

    weights: dict[str, float]

    def __str__(self) -> str:
        return f"split shares {self.weights} need names, finite values of 0 or more, and at least one above 0."


def assign_split(key: str | bytes, weights: Mapping[str, float]) -> str:
    """Return the split of a piece of content: each split gets its share of all contents, and equal content one split.

    ``key`` is the content, or its digest; never its position or its file's name. The answer depends on nothing else,
    so data that is added later moves nothing, duplicates cannot leak from train to test, and every machine agrees.
    Each split draws a number from the hash and the best for its share wins (rendezvous hashing): when a share grows,
    content only moves to that split. Shares need not sum to 1. Raises SplitWeightsError.
    """
    wanted = {name: share for name, share in weights.items() if share > 0}
    if not wanted or "" in weights or not all(math.isfinite(share) and share >= 0 for share in weights.values()):
        raise SplitWeightsError(dict(weights))
    content = hashlib.sha256(_SALT + (key.encode() if isinstance(key, str) else key)).digest()
    return min(wanted, key=lambda name: (_draw(content, name) / wanted[name], name))


def _draw(content: bytes, name: str) -> float:
    """Return a number that is exponentially distributed over contents, independent for each name."""
    number = int.from_bytes(hashlib.sha256(content + name.encode()).digest()[:8])
    return -math.log((number + 0.5) / 2**64)
