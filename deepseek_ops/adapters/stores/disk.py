"""This machine's side of a transfer: sources that are read once, targets that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from deepseek_ops.core.errors import LocalDiskError, StoreUnavailableError

DISK_ERRNOS = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG}
)


def disk_error(path: Path, error: OSError) -> LocalDiskError:
    """Return the error that says why this machine did not take the file."""
    return LocalDiskError(str(path), error.strerror or str(error))


def source_size(source: bytes | Path) -> int:
    """Return the size of what is to be sent. Raises LocalDiskError when the file is gone."""
    if isinstance(source, bytes):
        return len(source)
    try:
        return source.stat().st_size
    except OSError as error:
        raise disk_error(source, error) from error


def read_source(source: Path, part_bytes: int) -> Iterator[bytes]:
    """Yield the file in parts. Raises LocalDiskError when it cannot be read."""
    try:
        with source.open("rb", buffering=0) as file:
            while part := file.read(part_bytes):
                yield part
    except OSError as error:
        raise disk_error(source, error) from error


def reserve(handle: int, size: int, target: Path) -> None:
    """Make the file so large, with room on the disk. Raises LocalDiskError for ``target``."""
    try:
        os.posix_fallocate(handle, 0, size)
    except OSError as error:
        if error.errno in DISK_ERRNOS:
            raise disk_error(target, error) from error
        os.ftruncate(handle, size)  # the file system cannot reserve


def write_at(handle: int, data: bytes, offset: int, target: Path) -> None:
    """Write all of ``data`` at ``offset``. Raises LocalDiskError for ``target``."""
    view = memoryview(data)
    try:
        while view:
            written = os.pwrite(handle, view, offset)
            view, offset = view[written:], offset + written
    except OSError as error:
        raise disk_error(target, error) from error


class PartialFile:
    """A file under a temporary name beside ``target``; ``commit`` gives it its name, leaving without removes it."""

    def __init__(self, target: Path) -> None:
        self._target = target
        self._temporary = target.parent / f".{secrets.token_hex(8)}.part"
        self._handle = -1

    def __enter__(self) -> Self:
        try:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise disk_error(self._target, error) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
        self._temporary.unlink(missing_ok=True)

    def reserve(self, size: int) -> None:
        """Take the room now: a full disk shows before the transfer, not after most of it."""
        reserve(self._handle, size, self._target)

    def write_at(self, data: bytes, offset: int) -> None:
        """Write all of ``data`` at ``offset``; threads may write different parts at once."""
        write_at(self._handle, data, offset, self._target)

    def commit(self, size: int) -> None:
        """Give the file its name. Raises StoreUnavailableError when it has not got its ``size`` bytes."""
        actual = os.fstat(self._handle).st_size
        if actual != size:
            raise StoreUnavailableError(str(self._target), f"{actual} of {size} bytes arrived")
        try:
            self._temporary.replace(self._target)
        except OSError as error:
            raise disk_error(self._target, error) from error
