"""Objects as files below a folder, with the promises of S3: whole or absent, create-only, listed in key order.

A new object is written under ``.tmp/`` and linked to its name; a hard link fails when the name is taken, so of many
writers one wins, also over NFS. A ref must not outlive what it names when the machine loses power: ``create``, which
makes refs, first flushes its own bytes and every blob that this process has put or been told of since the last time.
Blobs that no ref followed may be cut by a power loss (file systems grow a file only after its bytes are down); their
key says their digest, a reader finds out, and the next put of a cut one writes it again.
"""

from __future__ import annotations

import errno
import logging
import os
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from weakref import finalize

from deepseek_ops.adapters.stores.disk import DISK_ERRNOS, PartialFile, disk_error, read_source, source_size
from deepseek_ops.adapters.stores.flushing import Flusher, flush_folder
from deepseek_ops.adapters.stores.keys import RESERVED, InvalidKeyError, NamedDigestCheck, checked_key, checked_prefix
from deepseek_ops.core.errors import (
    ObjectExistsError,
    ObjectNotFoundError,
    StoreAccessError,
    StoreUnavailableError,
)
from deepseek_ops.core.ports import ObjectInfo

COPY_BYTES = 1 << 20
STALE_SECONDS = 24 * 3600.0
"""An unfinished file older than this belongs to a writer that was killed."""
UNFLUSHED_SECONDS = 600.0
"""The kernel brings down by itself what is older: it waits half a minute."""
_log = logging.getLogger(__name__)
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)


class LocalStore:
    """An ObjectStore on a folder of this machine. The folder is made by the first write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.uri = self.folder.as_uri()
        self._swept = False
        self._flusher = Flusher(self.folder)
        finalize(self, _flushed_at_last, self._flusher)

    def __repr__(self) -> str:
        return f"LocalStore({self.uri!r})"

    def create(self, key: str, data: bytes) -> None:
        """Store ``data`` if the key is free. Raises ObjectExistsError."""
        target = self._path(key)
        if target.is_dir():
            raise InvalidKeyError(key, "is above a key that exists")
        if target.exists():  # spares a flush; the link decides
            raise ObjectExistsError(f"{self.uri}/{key}")
        with self._written(key, data) as temporary:
            self._flusher.barrier(temporary)
            folders = self._place(_link, temporary, target)
            for folder in folders:
                flush_folder(folder)

    def put_blob(self, key: str, source: bytes | Path) -> None:
        """Store content-addressed bytes. Raises IntegrityError when a file no longer has the digest in its key.

        They are flushed to the disk by the next ``create`` of this process, not here.
        """
        target = self._path(key)
        size = source_size(source)
        with suppress(OSError):
            if target.stat().st_size == size:
                os.utime(target)  # as a second upload would: what somebody has just stored is not old
                self._flusher.add(target, 0)  # who wrote it may not have flushed it yet
                return
        with self._written(key, source) as temporary:
            self._flusher.add(target, size, self._place(os.replace, temporary, target))

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Return the object, or what there is of ``length`` bytes from ``start`` (nothing beyond its end)."""
        with self._translated(key), self._path(key).open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            wanted = max(size - start, 0) if length is None else max(min(length, size - start), 0)
            parts: list[bytes] = []
            while wanted and (part := os.pread(file.fileno(), wanted, start)):
                parts.append(part)
                start, wanted = start + len(part), wanted - len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)

    def download(self, key: str, target: Path) -> None:
        """Write the object to ``target``, all of it or nothing. Raises LocalDiskError when the disk is full."""
        with self._translated(key), self._path(key).open("rb", buffering=0) as file, PartialFile(target) as partial:
            offset = 0
            while data := file.read(COPY_BYTES):
                partial.write_at(data, offset)
                offset += len(data)
            partial.commit(offset)

    def head(self, key: str) -> ObjectInfo | None:
        """Return the object's key and size, or None."""
        path = self._path(key)
        try:
            with self._translated(key):
                status = path.stat()
                if stat.S_ISDIR(status.st_mode):
                    return None
                if time.time() - status.st_mtime < UNFLUSHED_SECONDS:
                    self._flusher.add(path, 0)  # the caller may name it instead of putting it
                return ObjectInfo(key, status.st_size, status.st_mtime)
        except ObjectNotFoundError:
            return None

    def list(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[ObjectInfo]:
        """Yield objects whose key starts with ``prefix``, in ascending key order, after ``start_after``."""
        folder = checked_prefix(prefix).rpartition("/")[0]
        found = self._walk(f"{folder}/" if folder else "", prefix, start_after)
        for count, info in enumerate(found):
            if limit is not None and count >= limit:
                return
            yield info

    def _walk(self, folder: str, prefix: str, start_after: str) -> Iterator[ObjectInfo]:
        try:
            with self._translated(folder), os.scandir(self.folder / folder) as entries:
                # A folder sorts as its name with "/", as its keys do; so the walk is in key order.
                names = sorted((f"{e.name}/", e) if e.is_dir(follow_symlinks=False) else (e.name, e) for e in entries)
        except ObjectNotFoundError:
            return
        for name, entry in names:
            key = folder + name
            if not folder and name == f"{RESERVED}/":
                continue
            if name.endswith("/"):
                may_hold = key.startswith(prefix) or prefix.startswith(key)
                if may_hold and (key > start_after or start_after.startswith(key)):
                    yield from self._walk(key, prefix, start_after)
            elif key.startswith(prefix) and key > start_after:
                with suppress(FileNotFoundError):
                    status = entry.stat(follow_symlinks=False)
                    yield ObjectInfo(key, status.st_size, status.st_mtime)

    def delete(self, keys: Sequence[str]) -> None:
        """Remove the objects; a missing one is no error."""
        for key in keys:
            path = self._path(key)
            with suppress(ObjectNotFoundError), self._translated(key):
                path.unlink()

    def flush(self) -> None:
        """Bring what this process has put to the disk now: for those who name it elsewhere than in this store."""
        with self._translated("", writing=True):
            self._flusher.barrier()

    def _path(self, key: str) -> Path:
        return self.folder / checked_key(key)

    @contextmanager
    def _written(self, key: str, source: bytes | Path) -> Iterator[Path]:
        """Give the path of a nameless copy of ``source``; what is left of it goes when the block ends."""
        temporary = self.folder / RESERVED / f"{os.getpid()}-{secrets.token_hex(8)}"
        with self._translated(key, writing=True):
            temporary.parent.mkdir(parents=True, exist_ok=True)
            self._sweep(temporary.parent)
            try:
                with temporary.open("xb", buffering=0) as file:
                    _fill(file.fileno(), key, source)
                yield temporary
            finally:
                temporary.unlink(missing_ok=True)

    def _sweep(self, folder: Path) -> None:
        if self._swept:
            return
        self._swept = True
        oldest = time.time() - STALE_SECONDS
        for path in folder.iterdir():
            with suppress(OSError):
                if path.stat().st_mtime < oldest:
                    path.unlink()

    def _place(self, move: Callable[[Path, Path], None], temporary: Path, target: Path) -> Sequence[Path]:
        """Give a written file its name; return the folders that learn a new entry by it, still to be flushed."""
        folders = [target.parent]
        if not target.parent.is_dir():
            folders += [folder for folder in target.parents if self.folder in (folder, *folder.parents)]
            target.parent.mkdir(parents=True, exist_ok=True)
        move(temporary, target)
        return folders

    @contextmanager
    def _translated(self, key: str, *, writing: bool = False) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno == errno.EEXIST:
                raise ObjectExistsError(f"{self.uri}/{key}") from error
            if writing and error.errno in (errno.ENOTDIR, errno.EISDIR, errno.ENOTEMPTY):
                raise InvalidKeyError(key, "is below, or above, a key that exists") from error
            if error.errno in _MISSING:
                raise ObjectNotFoundError(f"{self.uri}/{key}") from error
            if writing and error.errno in DISK_ERRNOS:
                raise disk_error(self.folder, error) from error
            if error.errno in (errno.EACCES, errno.EPERM):
                raise StoreAccessError(self.uri, error.strerror or "permission denied") from error
            raise StoreUnavailableError(self.uri, error.strerror or "input/output error") from error


def _fill(handle: int, key: str, source: bytes | Path) -> None:
    if isinstance(source, bytes):
        _write_all(handle, source)
        return
    check = NamedDigestCheck(key)
    for data in read_source(source, COPY_BYTES):
        check.update(data)
        _write_all(handle, data)
    check.finish()


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]


def _link(temporary: Path, target: Path) -> None:
    try:
        os.link(temporary, target)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EOPNOTSUPP):
            raise StoreAccessError(str(target.parent), "its file system has no hard links") from error
        raise


def _flushed_at_last(flusher: Flusher) -> None:
    """When the store is let go, at the latest when the process ends, what it put gets to the disk."""
    try:
        flusher.barrier()
    except FileNotFoundError:
        return  # the whole folder is gone
    except OSError as error:
        _log.warning("what was put last may be lost if the power fails now: %s", error.strerror)
