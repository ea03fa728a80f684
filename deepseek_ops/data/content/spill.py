"""Tables that may be larger than memory: rows go to files by their key, and come back part by part, each sorted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numpy import ndarray

PARTS = 128
BUFFER_BYTES = 16 << 20
"""Rows of all parts together that wait in memory."""


class Spill:
    """Rows of one structured dtype whose field ``key`` (uint64, evenly spread) decides the part.

    Rows with equal keys come back together. Memory holds the buffer, and while reading one part: rows / 128 when keys
    are spread evenly.
    """

    def __init__(self, folder: Path, name: str, fields: list[tuple[str, str]]) -> None:
        import numpy as np

        self.dtype = np.dtype([("key", "<u8"), *fields])
        self.num_rows = 0
        self._folder = folder / name
        self._folder.mkdir(parents=True)
        self._waiting: list[ndarray] = []
        self._held = 0

    def rows(self, count: int) -> ndarray:
        """Return an empty table of so many rows, to be filled and added."""
        import numpy as np

        return np.empty(count, self.dtype)

    def add(self, rows: ndarray) -> None:
        """Append rows."""
        self._waiting.append(rows)
        self._held += rows.nbytes
        self.num_rows += len(rows)
        if self._held >= BUFFER_BYTES:
            self._write()

    def parts(self) -> Iterator[ndarray]:
        """Yield the parts, rows sorted by key and, within a key, in the order they were added; files go as read."""
        import numpy as np

        self._write()
        for number in range(PARTS):
            path = self._path(number)
            if path.is_file():
                rows = np.fromfile(path, self.dtype)
                path.unlink()
                yield rows[np.argsort(rows["key"], kind="stable")]

    def _write(self) -> None:
        import numpy as np

        if not self._waiting:
            return
        rows = np.concatenate(self._waiting)
        self._waiting, self._held = [], 0
        part = (rows["key"] >> np.uint64(57)).astype(np.int64)
        order = np.argsort(part, kind="stable")
        rows, part = rows[order], part[order]
        ends: ndarray = np.asarray(np.searchsorted(part, np.arange(PARTS), side="right"))
        begin = 0
        for number, end in enumerate(ends.tolist()):
            if end > begin:
                with self._path(number).open("ab") as file:
                    file.write(rows[begin:end].tobytes())
            begin = end

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:03d}"


def runs(keys: ndarray) -> Iterator[tuple[int, int]]:
    """Yield (begin, end) of every run of at least two equal values in a sorted array."""
    import numpy as np

    if not len(keys):
        return
    begins = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    ends: ndarray = np.append(begins[1:], len(keys))
    several = ends - begins > 1
    yield from zip(begins[several].tolist(), ends[several].tolist(), strict=True)
