"""From git-lfs's folder to the store: the root first, then the bytes, unless they are there."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from deepseek_ops.core.errors import IntegrityError, LocalDiskError, ObjectExistsError
from deepseek_ops.core.objects import blob_key, lfs_root_key
from deepseek_ops.core.ports import ObjectStore


def upload(
    store: ObjectStore, repository: str, oid: str, size: int, path: Path, advance: Callable[[int], None]
) -> bool:
    """Store the object unless it is there, and return whether its bytes were sent.

    The root is noted before anybody looks whether the object exists: a collection that began earlier reads the roots
    again before it deletes, so an object that was seen here stays.

    Raises IntegrityError when the file is not what its oid says, LocalDiskError when it cannot be read.
    """
    note_root(store, repository, oid, size)
    key = blob_key(oid)
    info = store.head(key)
    if info is not None and info.size == size:
        return False
    try:
        actual = path.stat().st_size
    except OSError as error:
        raise LocalDiskError(str(path), error.strerror or "cannot be read") from error
    if actual != size:
        raise IntegrityError(str(path), f"{size} bytes", f"{actual} bytes")
    store.put_blob(key, _WatchedPath(path).told(advance))
    return True


def note_root(store: ObjectStore, repository: str, oid: str, size: int) -> None:
    """Note in the store that the repository has pushed this object. Doing it again changes nothing."""
    body = json.dumps({"oid": oid, "repository": repository, "size": size}, sort_keys=True)
    with suppress(ObjectExistsError):
        store.create(lfs_root_key(repository, oid), body.encode())


class _WatchedPath(type(Path())):  # type: ignore[misc]  # the concrete class of this platform
    """A path whose readers tell how far they are: the store reads the file, and only the file can say how much."""

    def told(self, advance: Callable[[int], None]) -> _WatchedPath:
        """Return this path, with ``advance`` called after each read."""
        self._advance = advance
        return self

    def open(self, mode: str = "r", buffering: int = -1, *_: object, **__: object) -> io.RawIOBase:
        """Open for reading bytes without a buffer, as the stores do."""
        if mode != "rb" or buffering != 0:
            raise io.UnsupportedOperation(f"mode {mode!r}")
        return _WatchedFile(str(self), self._advance)


class _WatchedFile(io.FileIO):
    def __init__(self, path: str, advance: Callable[[int], None]) -> None:
        super().__init__(path, "rb")
        self._advance = advance

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(-1 if size is None else size)
        self._advance(self.tell())
        return data
