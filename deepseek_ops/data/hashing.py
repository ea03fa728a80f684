"""Files on their way from the disk into the store: small ones hashed as they are read, large ones one by one."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from deepseek_ops.data import parallel
from deepseek_ops.data.blobs import StoreBlobs, hash_file
from deepseek_ops.data.folders import ChangedWhileReadError, local_error
from deepseek_ops.data.listing import Listing
from deepseek_ops.data.pages import LOOSE
from deepseek_ops.data.statcache import StatCache

BATCH_BYTES = 2 << 20
BATCH_FILES = 128
LARGE_AT_ONCE = max(2, min(4, parallel.CORES))
LARGE_BUDGET = 192 << 20
"""Memory for large files in transfer."""
IN_MEMORY_BYTES = 64 << 20
"""Up to this size a file is read once; a larger one is hashed first and travels in parts."""
PARTS_BYTES = 96 << 20
"""Memory for the parts of one file on their way."""


class Hashed(NamedTuple):
    """Small files of one listing with what was read of them."""

    listing: Listing
    files: list[tuple[int, bytes, bytes]]
    """Position in the listing, SHA-256 and content of each."""


class SmallFiles:
    """Reads and hashes small files; results come in the order of the questions. A context manager."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._waiting: deque[Future[Hashed]] = deque()
        readers = parallel.READERS
        self._pool = ThreadPoolExecutor(readers, thread_name_prefix="readers") if readers > 1 else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)

    def read(self, listing: Listing, indexes: Sequence[int]) -> Iterator[Hashed]:
        """Ask for files of a listing and yield what has been read of these and earlier ones.

        Raises ChangedWhileReadError, LocalDiskError.
        """
        for batch in _batches(listing, indexes):
            if self._pool is None:
                yield self._hashed(listing, batch)
                continue
            self._waiting.append(self._pool.submit(self._hashed, listing, batch))
            if len(self._waiting) > 2 * parallel.READERS:
                yield self._waiting.popleft().result()

    def rest(self) -> Iterator[Hashed]:
        """Yield all that was asked for and has not been yielded."""
        while self._waiting:
            yield self._waiting.popleft().result()

    def _hashed(self, listing: Listing, indexes: Sequence[int]) -> Hashed:
        """Everything in here runs once for each file of a data set: hence no function of its own for each step."""
        names, sizes, folder, sha256 = listing.names, listing.sizes, self._folder, hashlib.sha256
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        found: list[tuple[int, bytes, bytes]] = []
        path = folder
        try:
            for index in indexes:
                path = f"{folder}/{names[index]}"
                handle = os.open(path, flags)
                try:
                    data = os.read(handle, sizes[index] + 1)
                finally:
                    os.close(handle)
                if len(data) != sizes[index]:
                    raise ChangedWhileReadError(path)
                found.append((index, sha256(data).digest(), data))
        except OSError as error:
            raise local_error(path, error) from error
        return Hashed(listing, found)


def _batches(listing: Listing, indexes: Sequence[int]) -> Iterator[list[int]]:
    batch: list[int] = []
    size = 0
    for index in indexes:
        batch.append(index)
        size += listing.sizes[index]
        if size >= BATCH_BYTES or len(batch) >= BATCH_FILES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class LargeFiles:
    """Hashes large files and sends those the store does not have, several at once. A context manager."""

    def __init__(self, folder: str, blobs: StoreBlobs, cache: StatCache, workers: int) -> None:
        self._folder = folder
        self._blobs = blobs
        self._cache = cache
        self._budget = parallel.MemoryBudget(LARGE_BUDGET)
        self._at_once = min(workers, LARGE_AT_ONCE)
        self._pool = ThreadPoolExecutor(self._at_once, thread_name_prefix="large")
        self._sending: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def send(self, listing: Listing, index: int) -> None:
        """See to it that a file of the listing is hashed and stored; waits while too many are on their way."""
        while len(self._sending) > 4 * self._at_once:
            self._sending.popleft().result()
        future = self._pool.submit(self._send, listing, index)
        self._sending.append(future)
        listing.sending.append(future)

    def _send(self, listing: Listing, index: int) -> None:
        size, raw = listing.sizes[index], listing.digests[index]
        if raw is not None and self._blobs.present(raw.hex(), size):
            pass  # hashed and sent by a commit that did not end, or known from another store
        elif size <= IN_MEMORY_BYTES:
            with self._budget.taken(size):
                raw = self._send_whole(listing, index)
        else:
            raw = self._send_in_parts(listing, index)
        listing.digests[index] = raw
        listing.places[index] = LOOSE

    def _send_whole(self, listing: Listing, index: int) -> bytes:
        """Read a file once: what is hashed is what is sent."""
        path, size, expected = self._path(listing, index), listing.sizes[index], listing.digests[index]
        try:
            with path.open("rb", buffering=0) as file:
                data = file.read(size + 1)
        except OSError as error:
            raise local_error(path, error) from error
        digest = hashlib.sha256(data)
        raw = digest.digest()
        if len(data) != size or expected not in (None, raw):
            raise ChangedWhileReadError(str(path))
        if raw not in listing.known:
            self._blobs.ensure(digest.hexdigest(), size, data)
        if expected is None:
            self._cache.remember_large(listing.names[index], listing.stat(index), raw)
        return raw

    def _send_in_parts(self, listing: Listing, index: int) -> bytes:
        path, size, raw = self._path(listing, index), listing.sizes[index], listing.digests[index]
        if raw is None:
            digest, found = hash_file(path)
            if found != size:
                raise ChangedWhileReadError(str(path))
            raw = bytes.fromhex(digest)
            self._cache.remember_large(listing.names[index], listing.stat(index), raw)
        if raw not in listing.known:
            with self._budget.taken(PARTS_BYTES):
                self._blobs.ensure(raw.hex(), size, path)
        return raw

    def _path(self, listing: Listing, index: int) -> Path:
        return Path(self._folder, listing.names[index])
