"""Flushing files to the disk late and together, but before anything that names them.

One flush a file costs a journal commit each; a commit of a dataset needs all of its files on the disk only when the
reference to them appears. So blobs are written without a flush, and ``Flusher.barrier`` brings down what is open.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Lock

ONE_BY_ONE = 16
"""Up to so many files are flushed singly; more cost less by flushing the file system once."""
MAX_OPEN_FILES = 10_000
"""So many names are remembered at most: beyond it a barrier comes early."""
MAX_OPEN_BYTES = 1 << 30
"""So much is left to the kernel's own pace at most, so that the barrier of a large commit does not wait for it all."""


class Flusher:
    """What this process relies on in one folder without knowing it to be on the disk. Safe for use by many threads."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = Lock()
        self._barrier = Lock()
        self._files: set[Path] = set()
        self._folders: set[Path] = set()
        self._bytes = 0

    def add(self, file: Path, size: int, folders: Iterable[Path] = ()) -> None:
        """Remember a file that got its name without a flush, or that somebody else may have left so."""
        with self._lock:
            self._files.add(file)
            self._folders.update(folders)
            self._bytes += size
            full = self._bytes > MAX_OPEN_BYTES or len(self._files) > MAX_OPEN_FILES
        if full:
            self.barrier()

    def barrier(self, extra: Path | None = None) -> None:
        """Return when every remembered file, and ``extra``, is on the disk. After an OSError all stay remembered.

        A second thread waits for the first: what it relies on may be among what the first has just taken.
        """
        with self._barrier:
            with self._lock:
                files, folders, size = self._files, self._folders, self._bytes
                self._files, self._folders, self._bytes = set(), set(), 0
            try:
                _flush([*files, *([extra] if extra else [])], folders, self._root)
            except BaseException:
                with self._lock:
                    self._files |= files
                    self._folders |= folders
                    self._bytes += size
                raise


def _flush(files: list[Path], folders: Iterable[Path], root: Path) -> None:
    if len(files) > ONE_BY_ONE and (sync := _syncfs()):
        _with_handle(root, sync, os.O_RDONLY | os.O_DIRECTORY)
        return
    for file in files:
        with suppress(FileNotFoundError):  # removed since: nothing can name it
            _with_handle(file, os.fsync, os.O_RDONLY)
    for folder in folders:
        flush_folder(folder)


def flush_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    with suppress(OSError):  # some file systems do not flush folders; the files' own flush stands
        _with_handle(folder, os.fsync, os.O_RDONLY | os.O_DIRECTORY)


def _with_handle(path: Path, flush: Callable[[int], object], flags: int) -> None:
    handle = os.open(path, flags | os.O_CLOEXEC)
    try:
        flush(handle)
    finally:
        os.close(handle)


@cache
def _syncfs() -> Callable[[int], None] | None:
    """Return Linux's ``syncfs``, which Python does not have; None elsewhere. Raises OSError as ``os.fsync`` does."""
    try:
        function = ctypes.CDLL(None, use_errno=True).syncfs
    except (OSError, AttributeError):
        return None

    def syncfs(handle: int) -> None:
        if function(handle) != 0:
            code = ctypes.get_errno() or errno.EIO
            raise OSError(code, os.strerror(code))

    return syncfs
