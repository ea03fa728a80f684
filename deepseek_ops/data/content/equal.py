"""Equal documents, and documents that are equal but for case and spacing and fell into different splits.

Digests of all documents go to disk; afterwards they come back grouped. Memory holds one byte per document for the
answer and one part of the digests.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_ops.data.content.spill import Spill, runs

if TYPE_CHECKING:
    from numpy import ndarray

_BATCH = 8192


def loosely(text: str) -> bytes:
    """Return the text without case and spacing."""
    return " ".join(text.casefold().split()).encode("utf-8", "replace")


class EqualDocuments:
    """Collects digests of documents by number and split, then says which repeat and which leak."""

    def __init__(self, folder: Path) -> None:
        self._spill = Spill(folder, "digests", [("rest", "<u8"), ("exact", "V16"), ("number", "<u8"), ("split", "<u1")])
        self._waiting: list[tuple[int, int, bytes, int, int]] = []

    def add(self, number: int, split: int, text: str) -> None:
        """Add a document; numbers ascend."""
        loose = blake2b(loosely(text), digest_size=16).digest()
        exact = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        key, rest = int.from_bytes(loose[:8], "little"), int.from_bytes(loose[8:], "little")
        self._waiting.append((key, rest, exact, number, split))
        if len(self._waiting) >= _BATCH:
            self._flush()

    def found(self) -> Iterator[tuple[int, int, bool]]:
        """Yield (number, first, leaks) of each document to leave out.

        It equals the document ``first`` that came before; or, when it ``leaks``, one of another split, which case and
        spacing may tell from it. Of equal documents the first is kept.
        """
        self._flush()
        for part in self._spill.parts():
            for begin, end in runs(part["key"]):
                yield from _repeats(part[begin:end])

    def _flush(self) -> None:
        import numpy as np

        if self._waiting:
            self._spill.add(np.array(self._waiting, self._spill.dtype))
            self._waiting = []


def _repeats(rows: ndarray) -> Iterator[tuple[int, int, bool]]:
    kept: dict[bytes, tuple[int, int]] = {}
    homes: dict[int, tuple[int, int]] = {}
    for _, rest, exact, number, split in rows.tolist():
        if exact in kept:
            first, home = kept[exact]
            yield number, first, home != split
            continue
        kept[exact] = number, split
        home, first = homes.setdefault(rest, (split, number))
        if home != split:
            yield number, first, True
