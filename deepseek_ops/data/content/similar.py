"""Nearly equal documents among many: what each new document is most like, in bounded memory.

Signatures and band keys go to disk as documents come; afterwards the bands are read part by part, and documents that
meet in one are compared. In a crowded band (boilerplate, templates) each document is compared with the first ones of
each group only, so the work stays linear; such documents are still found, as near to those.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_ops.data.content.minhash import HASHES, Banding, band_keys, banding, signatures, similarity
from deepseek_ops.data.content.spill import Spill, runs

if TYPE_CHECKING:
    from numpy import ndarray

MAX_GROUPS = 250
CROWD = 24
"""From so many documents in one band on, each is compared with the first of each group only."""
FIRSTS = 4
_CHECK_ROWS = 1 << 16
_COMPARE_ROWS = 1 << 13


@dataclass(frozen=True, slots=True)
class Pair:
    """Two documents that are nearly equal; ``first`` was added before ``second``."""

    first: int
    second: int
    similarity: float
    groups: tuple[int, int]
    """Of the first and of the second."""


class SimilarDocuments:
    """Collects signatures; then says which documents are nearly equal. ``group`` is a split or an evaluation set."""

    def __init__(self, folder: Path, threshold: float) -> None:
        self.threshold = threshold
        self.cut: Banding = banding(threshold)
        self._spill = Spill(folder, "bands", [("row", "<u4")])
        self._path = folder / "signatures"
        self._documents = array("Q")
        self._groups = bytearray()

    def add(self, documents: Sequence[int], groups: Sequence[int], batch: Sequence[bytes]) -> None:
        """Add documents by number, group (0..249) and ``words_of``; those without a word are like nothing."""
        import numpy as np

        signed, which = signatures(batch)
        if not len(which):
            return
        first = len(self._documents)
        self._documents.extend(documents[index] for index in which.tolist())
        self._groups.extend(groups[index] for index in which.tolist())
        with self._path.open("ab") as file:
            file.write(signed.tobytes())
        rows = self._spill.rows(len(which) * self.cut.bands)
        rows["key"] = band_keys(signed, self.cut).ravel()
        rows["row"] = np.repeat(np.arange(first, first + len(which), dtype=np.uint32), self.cut.bands)
        self._spill.add(rows)

    def pairs(self, *, across: bool) -> Iterator[Pair]:
        """Yield nearly equal pairs, those of different groups only when ``across``; a pair may come more than once."""
        import numpy as np

        if not self._documents:
            return
        with self._path.open("rb", buffering=0) as signed:
            for part in self._spill.parts():
                rows = part["row"]
                waiting: list[tuple[int, int]] = []
                for begin, end in runs(part["key"]):
                    waiting += self._meetings(np.unique(rows[begin:end]).tolist(), across=across)
                    if len(waiting) >= _CHECK_ROWS:
                        yield from self._near(signed, waiting)
                        waiting = []
                yield from self._near(signed, waiting)
        self._path.unlink()

    def _meetings(self, rows: Sequence[int], *, across: bool) -> list[tuple[int, int]]:
        groups = self._groups
        if across and len({groups[row] for row in rows}) < 2:
            return []
        partners = rows if len(rows) < CROWD else self._firsts(rows)
        return [
            (min(left, right), max(left, right))
            for left in rows
            for right in partners
            if (left < right or (left > right and partners is not rows))
            and not (across and groups[left] == groups[right])
        ]

    def _firsts(self, rows: Sequence[int]) -> list[int]:
        found: dict[int, list[int]] = {}
        for row in rows:
            mine = found.setdefault(self._groups[row], [])
            if len(mine) < FIRSTS:
                mine.append(row)
        return [row for mine in found.values() for row in mine]

    def _near(self, signed: FileIO, meetings: list[tuple[int, int]]) -> Iterator[Pair]:
        import numpy as np

        unique = sorted(set(meetings))
        for start in range(0, len(unique), _COMPARE_ROWS):
            pairs = np.asarray(unique[start : start + _COMPARE_ROWS], np.int64)
            rows, places = np.unique(pairs, return_inverse=True)
            read = _read_rows(signed, rows)
            left_at, right_at = places.reshape(-1, 2).T
            near = similarity(read[left_at], read[right_at])
            for at in np.flatnonzero(near >= self.threshold).tolist():
                left, right = int(pairs[at, 0]), int(pairs[at, 1])
                groups = self._groups[left], self._groups[right]
                yield Pair(self._documents[left], self._documents[right], round(float(near[at]), 4), groups)


def _read_rows(signed: FileIO, rows: ndarray) -> ndarray:
    """Return these signatures. They are read, not mapped: mapped pages would count as this process's memory."""
    import numpy as np

    width = HASHES * 4
    joined = b"".join([os.pread(signed.fileno(), width, row * width) for row in rows.tolist()])
    found: ndarray = np.frombuffer(joined, np.uint32).reshape(-1, HASHES)
    return found
