"""Files of a version into a new folder, as a stream: requests ahead of the disk, few files in memory.

Threads fetch stretches of packs while the caller's thread hashes and writes what came before; with many cores some
more do that. Nothing is overwritten: two files that are one to this disk end in an error.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import stat
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Literal

from deepseek_ops.core.errors import IntegrityError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.data import parallel
from deepseek_ops.data.blobs import hash_file
from deepseek_ops.data.folders import UnsafeTargetError, check_plain, local_error
from deepseek_ops.data.layout import blob_key
from deepseek_ops.data.packs import READ_BYTES, PackRead, Stored, fetch_packed, plan_reads, unpacked
from deepseek_ops.data.pages import LOOSE
from deepseek_ops.data.progress import Meter

Verify = Literal["all", "sample", "none"]
"""Which files a checkout hashes."""
SAMPLE_OF = 16
WINDOW = 1 << 15
"""Files among which those that lie together in a pack are found."""
FETCHES = 3
"""Requests under way; up to twice as many answers of 16 MiB are held."""
STREAMED_BYTES = 256 << 20
"""Up to this size a large file comes in one stream; a larger one comes in parallel parts and is hashed afterwards."""
PARTS_BYTES = 96 << 20
"""Memory for the parts of one file on their way."""
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def verification(verify: Verify) -> Callable[[bytes], bool]:
    """Return which files, by digest, are to be hashed. A sample is another one each time."""
    if verify == "sample":
        wanted = secrets.randbelow(SAMPLE_OF)
        return lambda digest: digest[0] % SAMPLE_OF == wanted
    return lambda _digest: verify == "all"


class FolderWriter:
    """Writes files below a folder that exists and is empty."""

    def __init__(
        self, store: ObjectStore, folder: Path, check: Callable[[bytes], bool], meter: Meter, workers: int
    ) -> None:
        self._store = store
        self._folder = folder
        self._root = str(folder)
        self._check = check
        self._meter = meter
        self._workers = workers
        self._made = {""}
        self._budget = parallel.MemoryBudget(PARTS_BYTES)
        self._loose: deque[Future[None]] = deque()

    def write(self, files: Iterable[Stored]) -> None:
        """Write them all. Raises UnsafeTargetError, IntegrityError, ObjectNotFoundError, LocalDiskError."""
        with ThreadPoolExecutor(min(self._workers, 4), thread_name_prefix="loose") as pool:
            try:
                fetched = parallel.in_order(self._fetch, self._requests(files, pool), min(self._workers, FETCHES))
                deque(parallel.small_work(self._write_pack, fetched), maxlen=0)
                while self._loose:
                    self._loose.popleft().result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def _requests(self, files: Iterable[Stored], pool: ThreadPoolExecutor) -> Iterator[PackRead]:
        """Yield the requests for packed files, with their folders made; large files go to the pool meanwhile."""
        rest = iter(files)
        while window := list(islice(rest, WINDOW)):
            names = [file.entry.path for file in window]
            check_plain(self._folder, names)
            for folder in dict.fromkeys([name.rpartition("/")[0] for name in names]):
                self._make_folder(folder)
            for file in window:
                if file.location == LOOSE:
                    os.close(self._create(file.entry.path))  # the name is taken; the download replaces it
                    self._loose.append(pool.submit(self._write_loose, file))
                    while len(self._loose) > 4 * self._workers:
                        self._loose.popleft().result()
            yield from plan_reads(window)

    def _make_folder(self, folder: str) -> None:
        if folder in self._made:
            return
        self._make_folder(folder.rpartition("/")[0])
        self._made.add(folder)
        path = f"{self._root}/{folder}"
        try:
            os.mkdir(path)  # noqa: PTH102  (per folder of a large set: Path would double its cost)
        except FileExistsError:
            if not stat.S_ISDIR(os.lstat(path).st_mode):
                raise UnsafeTargetError(self._root, folder, "is both a file and a folder") from None
        except OSError as error:
            raise local_error(path, error) from error

    def _fetch(self, read: PackRead) -> tuple[PackRead, bytes]:
        return read, fetch_packed(self._store, read)

    def _write_pack(self, fetched: tuple[PackRead, bytes]) -> None:
        read, data = fetched
        for file, content in unpacked(self._store.uri, read, data, self._check):
            self._write_file(file.entry.path, content)
        self._meter.add(len(read.files), read.length)

    def _write_file(self, path: str, content: memoryview) -> None:
        handle = self._create(path)
        try:
            while content:
                content = content[os.write(handle, content) :]
        except OSError as error:
            raise local_error(f"{self._root}/{path}", error) from error
        finally:
            os.close(handle)

    def _create(self, path: str) -> int:
        target = f"{self._root}/{path}"
        try:
            return os.open(target, _NEW_FILE, 0o666)
        except FileExistsError:
            folder = stat.S_ISDIR(os.lstat(target).st_mode)
            problem = (
                "is both a file and a folder" if folder else "appears twice, or is the same to this disk as another"
            )
            raise UnsafeTargetError(self._root, path, problem) from None
        except OSError as error:
            raise local_error(target, error) from error

    def _write_loose(self, file: Stored) -> None:
        if file.entry.size <= STREAMED_BYTES:
            self._stream(file)
        else:
            with self._budget.taken(PARTS_BYTES):
                self._download(file)
        self._meter.add(1, file.entry.size)

    def _stream(self, file: Stored) -> None:
        """Hash what comes as it comes: one pass, 16 MiB in memory."""
        key, size, digest = blob_key(file.entry.digest.hex()), file.entry.size, hashlib.sha256()
        path, at = f"{self._root}/{file.entry.path}", 0
        handle = self._opened(path)
        try:
            while at < size and (data := self._store.get(key, start=at, length=min(READ_BYTES, size - at))):
                digest.update(data)
                view = memoryview(data)
                while view:
                    view = view[os.write(handle, view) :]
                at += len(data)
        except OSError as error:
            raise local_error(path, error) from error
        finally:
            os.close(handle)
        self._require(file, at, digest.hexdigest())

    def _opened(self, path: str) -> int:
        try:
            return os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise local_error(path, error) from error

    def _download(self, file: Stored) -> None:
        path = Path(f"{self._root}/{file.entry.path}")
        self._store.download(blob_key(file.entry.digest.hex()), path)
        size = path.stat().st_size
        self._require(file, size, hash_file(path)[0] if self._check(file.entry.digest) else file.entry.digest.hex())

    def _require(self, file: Stored, size: int, digest: str) -> None:
        where, expected = f"{file.entry.path} in {self._store.uri}", file.entry.digest.hex()
        if size != file.entry.size:
            raise IntegrityError(where, f"{file.entry.size} bytes", f"{size} bytes")
        if digest != expected:
            raise IntegrityError(where, expected, digest)
