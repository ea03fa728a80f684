"""MinHash signatures and the banding that finds similar ones without comparing all pairs.

A signature holds the least value of 128 hash functions over a document's 5-word shingles; two signatures agree in a
place with the probability that is the Jaccard similarity of the two sets (Broder, "On the resemblance and containment
of documents", 1997). Split into ``bands`` of ``rows`` values, two documents meet in some band with probability
``1 - (1 - s**rows)**bands``: an S-curve whose steep part lies near the threshold (Leskovec, Rajaraman, Ullman, "Mining
of Massive Datasets", chapter 3). Who met is then compared on the whole signature, whose estimate of ``s`` has a
standard error of ``sqrt(s (1 - s) / 128)``: 0.035 at 0.8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from deepseek_ops.data.content.words import PIECE_BYTES, mixed, pieces, word_runs

if TYPE_CHECKING:
    from numpy import ndarray

HASHES = 128
SHINGLE_WORDS = 5
SEED = 20_260_101
"""Fixed: the same documents are similar on every machine."""
WANTED_RECALL = 0.98


@dataclass(frozen=True, slots=True)
class Banding:
    """How signatures are cut into bands."""

    bands: int
    rows: int

    @property
    def steep(self) -> float:
        """Similarity at which the S-curve is steepest, about ``(1 / bands) ** (1 / rows)``."""
        return float((1 / self.bands) ** (1 / self.rows))

    def meets(self, similarity: float) -> float:
        """Return the probability that two documents of this similarity meet in a band."""
        return float(1 - (1 - similarity**self.rows) ** self.bands)


def banding(threshold: float) -> Banding:
    """Return the cut with the most rows, hence the fewest useless meetings, that still finds 98% at the threshold."""
    cuts = [Banding(HASHES // rows, rows) for rows in range(1, 33)]
    return next((cut for cut in reversed(cuts) if cut.meets(threshold) >= WANTED_RECALL), cuts[0])


def signatures(batch: Sequence[bytes]) -> tuple[ndarray, ndarray]:
    """Return (signatures, which) of the texts of a batch that have words: uint32 (n, 128), int64 (n,).

    ``batch`` holds at most about ``PIECE_BYTES``, or one text of any length.
    """
    import numpy as np

    if len(batch) == 1 and len(batch[0]) > PIECE_BYTES:
        parts = [_signatures([piece])[0] for piece in pieces(batch[0])]
        return np.min(np.concatenate(parts), axis=0, keepdims=True), np.zeros(1, np.int64)
    return _signatures(batch)


def _signatures(batch: Sequence[bytes]) -> tuple[ndarray, ndarray]:
    import numpy as np

    hashes, documents = word_runs(batch).shingles(SHINGLE_WORDS)
    if not len(hashes):
        return np.empty((0, HASHES), np.uint32), np.empty(0, np.int64)
    begins = np.flatnonzero(np.concatenate([[True], documents[1:] != documents[:-1]]))
    factors, offsets = _functions()
    result: ndarray = np.empty((len(begins), HASHES), np.uint32)
    work = np.empty_like(hashes)
    for number in range(HASHES):
        np.multiply(hashes, factors[number], out=work)
        work += offsets[number]
        work >>= np.uint64(32)
        result[:, number] = np.minimum.reduceat(work, begins)
    return result, documents[begins]


def band_keys(signed: ndarray, cut: Banding) -> ndarray:
    """Return a 64-bit key for each band of each signature, shape (n, bands); bands never share keys by position."""
    import numpy as np

    keys: ndarray = np.empty((len(signed), cut.bands), np.uint64)
    for band in range(cut.bands):
        key: ndarray = np.full(len(signed), band + 1, np.uint64)
        for row in range(cut.rows):
            key ^= signed[:, band * cut.rows + row].astype(np.uint64)
            key = mixed(key * np.uint64(0x9E3779B97F4A7C15))
        keys[:, band] = key
    return keys


def similarity(left: ndarray, right: ndarray) -> ndarray:
    """Return the share of places in which signatures agree, row by row: the estimate of the Jaccard similarity."""
    import numpy as np

    agreed: ndarray = np.mean(left == right, axis=1)
    return agreed


def standard_error(value: float) -> float:
    """Return the standard error of an estimated similarity."""
    return math.sqrt(max(value * (1 - value), 0) / HASHES)


@cache
def _functions() -> tuple[ndarray, ndarray]:
    """Return factors (odd) and offsets of the hash functions x -> (a x + b) >> 32 modulo 2**64."""
    import numpy as np

    numbers = mixed(np.arange(SEED, SEED + 2 * HASHES, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    return numbers[:HASHES] | np.uint64(1), numbers[HASHES:]
