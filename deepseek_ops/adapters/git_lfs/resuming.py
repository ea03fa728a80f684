"""Downloads that go on where an earlier one was cut off, and are believed only when their digest is right."""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from deepseek_ops.core.errors import IntegrityError, LocalDiskError, ObjectNotFoundError, StoreUnavailableError
from deepseek_ops.core.objects import blob_key
from deepseek_ops.core.ports import ObjectStore

RANGE_BYTES = 8 << 20
RANGES_AHEAD = 3
"""Ranges in flight: 24 MiB of memory for each object that is on its way."""

Advance = Callable[[int], None]
"""Called with the number of bytes that are there now."""


def download_resuming(
    store: ObjectStore, oid: str, size: int, partial: Path, advance: Advance = lambda _done: None
) -> Path:
    """Return the file that holds the verified object: ``partial``, or one beside it while another process writes there.

    What an interrupted call left in ``partial`` is kept, hashed, and continued. If the whole has the wrong digest then,
    the object is fetched once more from its beginning, so only the store's own bytes are ever blamed.

    Raises:
        ObjectNotFoundError: The store has no such object.
        IntegrityError: The store's bytes have another digest or size.
        StoreUnavailableError: The store went away; what has arrived stays for the next try.
        LocalDiskError: This machine's disk refused.
    """
    with _claimed(partial) as (place, handle):
        try:
            begun = os.fstat(handle).st_size
            digest = _fill(store, oid, size, handle, advance)
            if digest != oid and begun:
                os.ftruncate(handle, 0)
                digest = _fill(store, oid, size, handle, advance)
        except OSError as error:
            raise LocalDiskError(str(place), error.strerror or str(error)) from error
        if digest != oid:
            place.unlink(missing_ok=True)
            raise IntegrityError(f"{store.uri}/{blob_key(oid)}", oid, digest)
        return place


@contextmanager
def _claimed(partial: Path) -> Iterator[tuple[Path, int]]:
    """Give a file that no other process writes to, and its handle."""
    try:
        partial.parent.mkdir(parents=True, exist_ok=True)
        place = partial
        handle = _locked(partial)
        if handle is None:
            place = partial.with_name(f"{partial.name}.{os.getpid()}")
            handle = os.open(place, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise LocalDiskError(str(partial), error.strerror or str(error)) from error
    try:
        yield place, handle
    except BaseException:
        if place != partial:
            place.unlink(missing_ok=True)  # nobody would find it again
        raise
    finally:
        os.close(handle)


def _locked(path: Path) -> int | None:
    """Return a locked handle on the file that has this name now, or None while another process holds it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.stat().st_ino == os.fstat(handle).st_ino:
                return handle
        except BlockingIOError:
            os.close(handle)
            return None
        except FileNotFoundError:
            pass  # finished and moved away by another process since it was opened: begin with a new one
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _fill(store: ObjectStore, oid: str, size: int, handle: int, advance: Advance) -> str:
    """Append what is missing and return the digest of the whole."""
    if os.fstat(handle).st_size > size:
        os.ftruncate(handle, 0)
    digest = hashlib.sha256()
    done = 0
    while data := os.pread(handle, RANGE_BYTES, done):
        digest.update(data)
        done += len(data)
    advance(done)
    if size == 0:
        _require(store, oid, size)
    for data in _ranges(store, oid, size, done):
        view = memoryview(data)
        while view:
            written = os.pwrite(handle, view, done)
            view, done = view[written:], done + written
        digest.update(data)
        advance(done)
    return digest.hexdigest()


def _ranges(store: ObjectStore, oid: str, size: int, start: int) -> Iterator[bytes]:
    """Yield the object's ranges from ``start`` on, in order, while the next ones are on their way."""
    key = blob_key(oid)

    def fetch(offset: int) -> bytes:
        wanted = min(RANGE_BYTES, size - offset)
        data = store.get(key, start=offset, length=wanted)
        if len(data) != wanted:
            _require(store, oid, size)
            raise StoreUnavailableError(store.uri, f"{key} ended {wanted - len(data)} bytes early")
        return data

    offsets = range(start, size, RANGE_BYTES)
    if len(offsets) < 2:
        yield from map(fetch, offsets)
        return
    waiting: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(RANGES_AHEAD, thread_name_prefix="ranges") as pool:
        try:
            for offset in offsets:
                waiting.append(pool.submit(fetch, offset))
                if len(waiting) >= RANGES_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _require(store: ObjectStore, oid: str, size: int) -> None:
    info = store.head(blob_key(oid))
    if info is None:
        raise ObjectNotFoundError(f"{store.uri}/{blob_key(oid)}")
    if info.size != size:
        raise IntegrityError(f"{store.uri}/{blob_key(oid)}", f"{size} bytes", f"{info.size} bytes")
