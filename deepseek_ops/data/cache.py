"""One cache of file contents for a whole machine: fetched once, then linked or copied into as many folders as ask.

::

    objects/ab/<sha256>   whole files, read-only, their time set to a fixed one
    scratch/<process>/    what is being written; the owner holds a lock on the folder, so what is left of dead ones goes
    locks/<2 hex>         held while a pack is fetched, so that of many processes one fetches it

Files of packs are kept one by one, not as packs: linking 10,000 files of 16 KiB takes two thirds of the CPU time of
writing them again from packs on this disk, and no space. Names appear by rename, so a process killed anywhere leaves a
valid cache. A file is linked to its target before it gets its name here, and a name that is removed takes nothing from
who has linked or opened it: eviction never waits for readers or hurts them.

Whoever writes through a link changes the file's time, which is how that is noticed without reading; hashing on link, of
all files or a sample, finds the rest. A file that is not what its name says is dropped and fetched again.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Literal

from deepseek_ops.core.errors import PermanentError
from deepseek_ops.data.folders import local_error
from deepseek_ops.data.pages import Entry

Mode = Literal["auto", "hardlink", "reflink", "copy"]
"""How a file gets from the cache to its target. What the disk cannot do falls back to a copy; ``auto`` tries a reflink,
which is a file of its own that shares blocks, then a hard link."""
Way = Literal["hardlink", "reflink", "copy"]

CACHE_VARIABLE = "DEEPSEEK_OPS_CACHE"
CACHE_SIZE_VARIABLE = "DEEPSEEK_OPS_CACHE_SIZE"
DEFAULT_BYTES = 50 << 30
STAMP_NS = 1_000_000_000 * 1_000_000_000
"""Modification time of every cached file (9 September 2001): another one says that somebody wrote to it."""
TOUCH_SECONDS = 60.0
"""A use is noted in the file's access time at most this often."""
_SIZE = re.compile(r"(\d+)\s*([KMGT]?)(?:i?B)?")
_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}
_FICLONE = 0x40049409
_CANNOT_CLONE = frozenset({errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM})
_CANNOT_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS})
_TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n# A cache of deepseek-ops: safe to delete when no job runs.\n"


@dataclass(eq=False)
class CacheSizeError(PermanentError):
    """The size of the cache is no size."""

    value: str

    def __str__(self) -> str:
        return f"{CACHE_SIZE_VARIABLE}={self.value!r} is no size; write one such as 50GiB."


@dataclass
class CacheUse:
    """What one materialisation took from the cache and what it brought."""

    hits: int = 0
    fetched: int = 0
    dropped: int = 0
    """Files that were not what their name says."""
    ways: dict[str, int] = field(default_factory=dict)


class ObjectCache:
    """File contents by SHA-256 below a folder of this machine. Safe for many threads and processes at once."""

    def __init__(self, folder: Path, *, max_bytes: int = DEFAULT_BYTES) -> None:
        self.folder = folder.absolute()
        self.max_bytes = max_bytes
        self.use = CacheUse()
        self._objects = f"{self.folder}/objects"
        self._can_clone = True
        self._lock = Lock()
        self._inserted = 0
        self._scratch = ""
        self._scratch_lock = -1
        self._shards: set[str] = set()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> ObjectCache | None:
        """Return the cache that the variables name, or None where they name none. Raises CacheSizeError."""
        folder, size = environment.get(CACHE_VARIABLE, ""), environment.get(CACHE_SIZE_VARIABLE, "")
        if not folder:
            return None
        if not size:
            return cls(Path(folder))
        parts = _SIZE.fullmatch(size.strip())
        if parts is None:
            raise CacheSizeError(size)
        return cls(Path(folder), max_bytes=int(parts[1]) << _UNITS[parts[2]])

    def __enter__(self) -> ObjectCache:
        try:
            for name in ("objects", "scratch", "locks"):
                (self.folder / name).mkdir(parents=True, exist_ok=True)
            tag = self.folder / "CACHEDIR.TAG"
            if not tag.exists():
                tag.write_bytes(_TAG)
            self._own_scratch()
        except OSError as error:
            raise local_error(self.folder, error) from error
        self.use = CacheUse()
        return self

    def _own_scratch(self) -> None:
        """Make a folder that nobody sweeps away: who sweeps can come between making and locking it."""
        while True:
            self._scratch = f"{self.folder}/scratch/{os.getpid()}-{secrets.token_hex(6)}"
            os.mkdir(self._scratch)  # noqa: PTH102
            with suppress(FileNotFoundError):
                self._scratch_lock = os.open(self._scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(self._scratch_lock, fcntl.LOCK_EX)
                if os.fstat(self._scratch_lock).st_nlink:
                    return
                os.close(self._scratch_lock)

    def __exit__(self, *_error: object) -> None:
        shutil.rmtree(self._scratch, ignore_errors=True)
        os.close(self._scratch_lock)
        if self._inserted:
            self.trim()

    def path(self, digest: bytes) -> str:
        """Return where a content lies, or would."""
        name = digest.hex()
        return f"{self._objects}/{name[:2]}/{name}"

    def place(self, entry: Entry, target: str, mode: Mode, *, check: bool = False) -> bool:
        """Put a cached file at ``target``, which does not exist; return False when it is not cached.

        ``check`` hashes it first. Raises LocalDiskError.
        """
        source = self.path(entry.digest)
        try:
            status = os.stat(source)  # noqa: PTH116  (per file of a large set, as below)
            if status.st_size != entry.size or status.st_mtime_ns != STAMP_NS or (check and not _holds(source, entry)):
                self._drop(source)
                return False
            way = self._transfer(source, target, mode)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise local_error(target, error) from error
        if status.st_atime_ns < time.time_ns() - TOUCH_SECONDS * 1e9:
            with suppress(OSError):  # somebody else's file, or evicted just now
                os.utime(source, ns=(time.time_ns(), STAMP_NS))
        self._count(way, hit=True)
        return True

    def insert(self, entry: Entry, content: bytes | memoryview, target: str, mode: Mode) -> None:
        """Put verified bytes at ``target`` and keep them. Raises LocalDiskError."""
        temporary = self.scratch_path()
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                view = memoryview(content)
                while view:
                    view = view[os.write(handle, view) :]
            finally:
                os.close(handle)
        except OSError as error:
            raise local_error(temporary, error) from error
        self.adopt(entry, temporary, target, mode)

    def scratch_path(self) -> str:
        """Return a free path on the cache's disk, for a file that ``adopt`` takes."""
        return f"{self._scratch}/{secrets.token_hex(8)}"

    def adopt(self, entry: Entry, temporary: str, target: str, mode: Mode) -> None:
        """Put a verified file at ``target`` and keep it; it must be on a ``scratch_path``. Raises LocalDiskError."""
        try:
            os.chmod(temporary, 0o444)  # noqa: PTH101
            os.utime(temporary, ns=(time.time_ns(), STAMP_NS))
            way = self._transfer(temporary, target, mode)
            home = self.path(entry.digest)
            self._make_shard(home)
            os.rename(temporary, home)  # noqa: PTH104
        except OSError as error:
            raise local_error(target, error) from error
        self._count(way, hit=False)
        with self._lock:
            self._inserted += entry.size
            full = self._inserted > self.max_bytes // 16
            self._inserted = 0 if full else self._inserted
        if full:
            self.trim()

    def _make_shard(self, home: str) -> None:
        shard = home.rpartition("/")[0]
        if shard not in self._shards:
            with suppress(FileExistsError):
                os.mkdir(shard)  # noqa: PTH102
            self._shards.add(shard)

    @contextmanager
    def fetching(self, name: str) -> Iterator[None]:
        """Hold what is to be fetched, so that others of this machine wait and then find it here."""
        handle = os.open(f"{self.folder}/locks/{name[:2]}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _transfer(self, source: str, target: str, mode: Mode) -> Way:
        if mode in ("auto", "reflink") and self._can_clone:
            if _clone(source, target):
                return "reflink"
            self._can_clone = False
        if mode in ("auto", "hardlink"):
            try:
                os.link(source, target)
            except OSError as error:
                if error.errno not in _CANNOT_LINK:
                    raise
            else:
                return "hardlink"
        _copy(source, target)
        return "copy"

    def _drop(self, source: str) -> None:
        with suppress(FileNotFoundError):
            os.unlink(source)  # noqa: PTH108
        with self._lock:
            self.use.dropped += 1

    def _count(self, way: Way, *, hit: bool) -> None:
        with self._lock:
            self.use.hits += hit
            self.use.fetched += not hit
            self.use.ways[way] = self.use.ways.get(way, 0) + 1

    def trim(self) -> int:
        """Remove what was used longest ago until the size limit is kept, and leftovers; return the bytes removed.

        A file that is linked into a folder is neither counted nor removed: its bytes stay on the disk either way. While
        another process is at it nothing is done.
        """
        handle = os.open(f"{self.folder}/locks/trim", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return 0
        try:
            self._sweep()
            return self._evict()
        finally:
            os.close(handle)

    def _evict(self) -> int:
        files = sorted(self._unlinked())
        total = sum(size for _, size, _ in files)
        removed = 0
        for _, size, path in files:
            if total - removed <= self.max_bytes:
                break
            with suppress(FileNotFoundError):
                os.unlink(path)  # noqa: PTH108
            removed += size
        return removed

    def _unlinked(self) -> Iterator[tuple[int, int, str]]:
        """Yield time of last use, size and path of each file that is nowhere but here."""
        with os.scandir(self._objects) as shards:
            for shard in shards:
                with os.scandir(shard.path) as entries:
                    for entry in entries:
                        with suppress(FileNotFoundError):
                            status = entry.stat(follow_symlinks=False)
                            if status.st_nlink == 1:
                                yield status.st_atime_ns, status.st_size, entry.path

    def _sweep(self) -> None:
        """Remove the scratch folders of processes that died."""
        with os.scandir(f"{self.folder}/scratch") as folders:
            for folder in folders:
                try:
                    handle = os.open(folder.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                except FileNotFoundError:
                    continue
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder.path, ignore_errors=True)
                except BlockingIOError:
                    continue
                finally:
                    os.close(handle)


def _holds(path: str, entry: Entry) -> bool:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        return hashlib.file_digest(file, "sha256").digest() == entry.digest


def _clone(source: str, target: str) -> bool:
    """Make ``target`` share the blocks of ``source``; return False where the disk cannot."""
    reader = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            fcntl.ioctl(writer, _FICLONE, reader)
        except OSError as error:
            os.unlink(target)  # noqa: PTH108
            if error.errno not in _CANNOT_CLONE:
                raise
            return False
        finally:
            os.close(writer)
    finally:
        os.close(reader)
    return True


def _copy(source: str, target: str) -> None:
    reader = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        writer = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            while os.sendfile(writer, reader, None, 1 << 30):
                pass
        finally:
            os.close(writer)
    finally:
        os.close(reader)
