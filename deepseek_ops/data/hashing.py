"""Files on their way from the disk into the store: small ones hashed as they are read, large ones one by one."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
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
LARGE_AT_ONCE = 4
LARGE_BUDGET = 192 << 20
"""Memory for large files in transfer."""
LARGE_FILE_BYTES = 96 << 20
"""What one of them needs at most: it travels in parts."""


class Hashed(NamedTuple):
    """One small file with what was read of it."""

    listing: Listing
    position: int
    digest: bytes
    data: bytes


class SmallFiles:
    """Reads and hashes small files; results come in the order of the questions. A context manager."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._waiting: deque[Future[list[Hashed]]] = deque()
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
        if self._pool is None:
            yield from self._each(listing, indexes)
            return
        for batch in _batches(listing, indexes):
            self._waiting.append(self._pool.submit(lambda wanted: list(self._each(listing, wanted)), batch))
            if len(self._waiting) > 2 * parallel.READERS:
                yield from self._waiting.popleft().result()

    def rest(self) -> Iterator[Hashed]:
        """Yield all that was asked for and has not been yielded."""
        while self._waiting:
            yield from self._waiting.popleft().result()

    def _each(self, listing: Listing, indexes: Iterable[int]) -> Iterator[Hashed]:
        names, sizes, folder, sha256 = listing.names, listing.sizes, self._folder, hashlib.sha256
        for index in indexes:
            data = _read(f"{folder}/{names[index]}", sizes[index])
            yield Hashed(listing, index, sha256(data).digest(), data)


def _read(path: str, size: int) -> bytes:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            data = os.read(handle, size + 1)
        finally:
            os.close(handle)
    except OSError as error:
        raise local_error(path, error) from error
    if len(data) != size:
        raise ChangedWhileReadError(path)
    return data


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
        path, size = Path(self._folder, listing.names[index]), listing.sizes[index]
        raw = listing.digests[index]
        if raw is None:
            digest, found = hash_file(path)
            if found != size:
                raise ChangedWhileReadError(str(path))
            raw = bytes.fromhex(digest)
            self._cache.remember_large(listing.names[index], listing.stat(index), raw)
        if raw not in listing.known:
            with self._budget.taken(min(size, LARGE_FILE_BYTES)):
                self._blobs.ensure(raw.hex(), size, path)
        listing.digests[index] = raw
        listing.places[index] = LOOSE
