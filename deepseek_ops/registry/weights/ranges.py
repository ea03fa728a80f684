"""Random access to bytes that are far away, with a budget: what a header reader may see of a file."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Protocol

from deepseek_ops.core.errors import LocalDiskError
from deepseek_ops.core.ports import Blobs, ObjectStore
from deepseek_ops.core.records import FileEntry
from deepseek_ops.registry.weights.errors import WeightFormatError

BUDGET_BYTES = 256 << 20
"""No header of a real model comes near; a file that asks for more is not one."""
BLOCK_BYTES = 128 << 10
"""One request to the store: long enough for most headers, short enough to cost nothing."""


class Ranges(Protocol):
    """Bytes by position."""

    name: str
    """For messages."""
    size: int
    num_read: int
    """Bytes read so far."""

    def read(self, start: int, length: int) -> bytes:
        """Return exactly ``length`` bytes. Raises WeightFormatError beyond the end or the budget."""


class LocalRanges:
    """Ranges of a local file."""

    def __init__(self, path: Path, name: str = "") -> None:
        self.name = name or str(path)
        self.num_read = 0
        self._path = path
        try:
            self.size = path.stat().st_size
        except OSError as error:
            raise LocalDiskError(str(path), error.strerror or "cannot be read") from error

    def read(self, start: int, length: int) -> bytes:
        _check(self, start, length)
        try:
            with self._path.open("rb", buffering=0) as file:
                data = os.pread(file.fileno(), length, start)
        except OSError as error:
            raise LocalDiskError(str(self._path), error.strerror or "cannot be read") from error
        return _counted(self, data, length)


class ObjectRanges:
    """Ranges of a store object. Raises ObjectNotFoundError with the first read of one that is not there."""

    def __init__(self, store: ObjectStore, key: str, size: int, name: str = "") -> None:
        self.name = name or key.rpartition("/")[2]
        self.size = size
        self.num_read = 0
        self._store = store
        self._key = key

    def read(self, start: int, length: int) -> bytes:
        _check(self, start, length)
        return _counted(self, self._store.get(self._key, start=start, length=length), length)


class BlobRanges:
    """Ranges of a file in the content-addressed space. Raises ObjectNotFoundError for one that is not there."""

    def __init__(self, blobs: Blobs, entry: FileEntry) -> None:
        self.name = entry.path
        self.size = entry.size
        self.num_read = 0
        self._blobs = blobs
        self._digest = entry.digest

    def read(self, start: int, length: int) -> bytes:
        _check(self, start, length)
        return _counted(self, self._blobs.get_part(self._digest, start=start, length=length), length)


def _check(ranges: Ranges, start: int, length: int) -> None:
    if start < 0 or length < 0 or start + length > ranges.size:
        raise WeightFormatError(
            ranges.name, f"bytes {start} to {start + length} are wanted of {ranges.size}: it is cut short or lies"
        )
    if ranges.num_read + length > BUDGET_BYTES:
        raise WeightFormatError(ranges.name, f"its header wants more than {BUDGET_BYTES >> 20} MiB to be read")


def _counted(ranges: Ranges, data: bytes, length: int) -> bytes:
    ranges.num_read += len(data)
    if len(data) != length:
        raise WeightFormatError(ranges.name, f"{len(data)} of {length} bytes came back: it is shorter than said")
    return data


class RangeFile(io.RawIOBase):
    """Ranges as a file, for readers that want one; wrap it in ``io.BufferedReader``."""

    def __init__(self, ranges: Ranges) -> None:
        super().__init__()
        self._ranges = ranges
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._ranges.size}[whence]
        if base + offset < 0:
            raise WeightFormatError(self._ranges.name, f"byte {base + offset} is wanted: an offset in it lies")
        self._at = base + offset
        return self._at

    def readinto(self, buffer: bytearray | memoryview, /) -> int:  # type: ignore[override]  # no Buffer before 3.12
        length = max(0, min(len(buffer), self._ranges.size - self._at))
        data = self._ranges.read(self._at, length) if length else b""
        buffer[:length] = data
        self._at += length
        return length


def buffered(ranges: Ranges) -> io.BufferedReader:
    """Return the ranges as a file that asks for blocks."""
    return io.BufferedReader(RangeFile(ranges), BLOCK_BYTES)
