"""Text as words, and runs of words as 64-bit numbers, without a Python step per word.

Two texts have equal words when they differ only in case, spacing, punctuation and compatibility forms of characters.
Scripts that write no spaces (Han, Kana, Thai, Lao, Khmer, Myanmar) count each letter as a word, or a Chinese document
would be one word.

A run of words is hashed as the bytes it spans, from one running polynomial over the whole batch modulo 2**64 (its
base is odd, so it can be divided by), then mixed. Equal runs have equal numbers everywhere and for ever; unequal ones
collide about once in 2**64.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import ndarray

PIECE_BYTES = 256 << 10
"""Longer documents are hashed in pieces; what is computed on a batch of this size stays in the processor's cache."""
OVERLAP_WORDS = 64
"""Pieces of one document share so many words, so that no run of that length is lost between them."""
_BASE = 0x9E3779B97F4A7C15
_SPACE = 32
_ALONE = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Kana
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),  # Han
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
_ASCII = bytes(ord(chr(code).lower()) if chr(code).isalnum() and code < 128 else _SPACE for code in range(256))


class _Folding(dict[int, str]):
    """What each character becomes; filled as characters are met."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        if unicodedata.category(char)[0] in "PSZC":
            folded = " "
        elif any(first <= code <= last for first, last in _ALONE):
            folded = f" {char} "
        else:
            folded = char
        self[code] = folded
        return folded


_FOLDING = _Folding()


def words_of(text: str) -> bytes:
    """Return the words of a text in UTF-8, one space between two; empty when it has none."""
    if text.isascii():
        return b" ".join(text.encode().translate(_ASCII).split())
    folded = unicodedata.normalize("NFKC", text).casefold().translate(_FOLDING)
    return " ".join(folded.split()).encode("utf-8", "replace")


@dataclass(frozen=True)
class WordRuns:
    """The words of a batch of documents, ready to be read in runs of any length."""

    starts: ndarray
    """Byte where each word begins, int64."""
    ends: ndarray
    """Byte after each word."""
    documents: ndarray
    """Number of each word's document within the batch."""
    _sums: ndarray
    _inverse: ndarray

    def hashes(self, length: int) -> tuple[ndarray, ndarray]:
        """Return (hashes, first word) of every run of ``length`` words that lies within one document, uint64, int64.

        The document of a run is ``documents[first word]``.
        """
        import numpy as np

        count = len(self.starts) - length + 1
        if count <= 0:
            return np.empty(0, np.uint64), np.empty(0, np.int64)
        first = np.flatnonzero(self.documents[:count] == self.documents[length - 1 :])
        return self._spans(self.starts[first], self.ends[first + length - 1]), first

    def shingles(self, length: int) -> tuple[ndarray, ndarray]:
        """Return (hashes, document) of every run of ``length`` words; a shorter document is one run of all it has."""
        import numpy as np

        hashes, first = self.hashes(length)
        documents = self.documents[first]
        numbers, begins, counts = np.unique(self.documents, return_index=True, return_counts=True)
        short = counts < length
        if not short.any():
            return hashes, documents
        spans = self._spans(self.starts[begins[short]], self.ends[begins[short] + counts[short] - 1])
        hashes, documents = np.concatenate([hashes, spans]), np.concatenate([documents, numbers[short]])
        order = np.argsort(documents, kind="stable")
        return hashes[order], documents[order]

    def _spans(self, begin: ndarray, end: ndarray) -> ndarray:
        return mixed((self._sums[end] - self._sums[begin]) * self._inverse[begin])


def word_runs(batch: Sequence[bytes]) -> WordRuns:
    """Return the runs of a batch of ``words_of``; a piece should have at most ``PIECE_BYTES``."""
    import numpy as np

    text = np.frombuffer(b" ".join(batch) + b" ", np.uint8)
    blank = text == _SPACE
    before = np.concatenate([[True], blank[:-1]])
    starts, ends = np.flatnonzero(~blank & before), np.flatnonzero(blank & ~before)
    offsets = np.cumsum([0] + [len(one) + 1 for one in batch])
    powers, inverse = _powers(_room(len(text)))
    sums: ndarray = np.zeros(len(text) + 1, np.uint64)
    np.cumsum((text.astype(np.uint64) + np.uint64(1)) * powers[: len(text)], out=sums[1:])
    documents: ndarray = np.asarray(np.searchsorted(offsets, starts, side="right")) - 1
    return WordRuns(starts, ends, documents, sums, inverse)


def pieces(words: bytes) -> Iterator[bytes]:
    """Yield a document's words in pieces of about ``PIECE_BYTES`` that overlap by ``OVERLAP_WORDS`` words."""
    start = 0
    while len(words) - start > PIECE_BYTES:
        end = words.rfind(b" ", start, start + PIECE_BYTES)
        end = end if end > start else start + PIECE_BYTES
        yield words[start:end]
        back = end
        for _ in range(OVERLAP_WORDS):
            back = words.rfind(b" ", start, back)
            if back <= start:
                break
        start = back + 1 if back > start else end
    yield words[start:]


def mixed(values: ndarray) -> ndarray:
    """Return the values with every bit spread over all 64, in place (the finaliser of SplitMix64)."""
    import numpy as np

    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        values ^= values >> np.uint64(shift)
        values *= np.uint64(factor)
    values ^= values >> np.uint64(31)
    return values


def _room(size: int) -> int:
    """Return a table size that serves many batches: a power of two from 1 Mi on."""
    return max(1 << 20, 1 << size.bit_length())


@cache
def _powers(size: int) -> tuple[ndarray, ndarray]:
    """Return the powers of the base and of its inverse, modulo 2**64."""
    import numpy as np

    inverse = pow(_BASE, -1, 1 << 64)
    tables = []
    for base in (_BASE, inverse):
        table: ndarray = np.full(size, base, np.uint64)
        table[0] = 1
        tables.append(np.cumprod(table))
    return tables[0], tables[1]
