"""Objects behind obstore: what S3, Google Cloud Storage, Azure and memory have in common.

obstore moves bytes with a tenth of boto3's CPU, keeps its connections open, and has create-only puts everywhere. Large
files go up in parts and come down in parallel ranges, within a fixed memory bound. obstore itself tries again after
a lost connection or a server error; what is tried again here is what it does not: a server that asks for patience, and
bytes that were damaged or cut on their way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, TypeVar

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError

from deepseek_ops.adapters.stores.disk import PartialFile, read_source, source_size
from deepseek_ops.adapters.stores.failures import explained, is_busy, is_damaged, status_of
from deepseek_ops.adapters.stores.keys import NamedDigestCheck, checked_key, checked_prefix, named_digest
from deepseek_ops.adapters.stores.pace import BUSY_TRIES, Pace, jittered
from deepseek_ops.adapters.stores.resuming import ResumableFile
from deepseek_ops.adapters.stores.s3_listing import listed
from deepseek_ops.core.errors import (
    DeepSeekOpsError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreUnavailableError,
)
from deepseek_ops.core.ports import ObjectInfo

if TYPE_CHECKING:
    from obstore import GetOptions
    from obstore.store import AzureStore, GCSStore, MemoryStore, S3Store

    Client: TypeAlias = S3Store | GCSStore | AzureStore | MemoryStore

Answer = TypeVar("Answer")

PART_BYTES = 16 << 20
MAX_PARTS = 9_000
"""S3 takes 10,000 parts an upload."""
PARALLEL_PARTS = 4
"""Parts of one object in flight: 64 MiB of memory."""
SINGLE_PUT_BYTES = 2 * PART_BYTES
CONFLICT_TRIES = 6
PAGE_KEYS = 1000
DELETE_KEYS = 1000
AGAIN_SECONDS = 0.1


class RemoteStore:
    """An ObjectStore on one bucket and prefix. Safe for use by many threads."""

    def __init__(self, uri: str, client: Client) -> None:
        self.uri = uri
        self._client = client
        self._bucket_seen = False
        self._pace = Pace()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.uri!r})"

    def create(self, key: str, data: bytes) -> None:
        """Store ``data`` if the key is free. Raises ObjectExistsError.

        When the answer of a successful put is lost, the error is StoreUnavailableError or, where the request was sent
        again, ObjectExistsError: a writer that must know whether it was itself reads back something only it could
        write.
        """
        path = checked_key(key)
        for attempt in range(CONFLICT_TRIES):
            try:
                self._ask(key, lambda: obstore.put(self._client, path, data, mode="create"))
            except ObjectExistsError as error:
                # 409: another conditional write on this key is in flight, and may yet fail.
                in_flight = isinstance(error.__cause__, AlreadyExistsError) and self._in_flight(error.__cause__)
                if not in_flight or attempt == CONFLICT_TRIES - 1:
                    raise
                time.sleep(0.05 * 2**attempt)
            else:
                return

    def _in_flight(self, _error: AlreadyExistsError) -> bool:
        """Return whether the key is not taken yet, but about to be."""
        return False

    def put_blob(self, key: str, source: bytes | Path) -> None:
        """Store content-addressed bytes. Raises IntegrityError when a file no longer has the digest in its key."""
        path = checked_key(key)
        if isinstance(source, Path):
            size = source_size(source)
            if size > SINGLE_PUT_BYTES:
                self._put_in_parts(path, source, size)
                return
            source = b"".join(checked_parts(key, source, PART_BYTES))
        data, parted = source, len(source) > SINGLE_PUT_BYTES
        self._ask(key, lambda: obstore.put(self._client, path, data, use_multipart=parted, chunk_size=PART_BYTES))

    def _put_in_parts(self, key: str, source: Path, size: int) -> None:
        """Send a large file. An upload that was cut short begins again with the next try."""
        part_bytes = max(PART_BYTES, -(-size // MAX_PARTS))
        failure: list[DeepSeekOpsError] = []

        def parts() -> Iterator[bytes]:
            try:
                yield from checked_parts(key, source, part_bytes)
            except DeepSeekOpsError as error:
                failure.append(error)  # obstore aborts the upload and raises an error of its own
                raise

        def put() -> None:
            obstore.put(
                self._client,
                key,
                parts(),
                use_multipart=True,
                chunk_size=part_bytes,
                max_concurrency=PARALLEL_PARTS,
            )

        try:
            self._ask(key, put)
        except DeepSeekOpsError:
            if failure:
                raise failure[0] from None
            raise

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Return the object, or what there is of ``length`` bytes from ``start`` (nothing beyond its end)."""
        path = checked_key(key)
        if length == 0:
            if self.head(key) is None:
                raise ObjectNotFoundError(f"{self.uri}/{key}")
            return b""

        def ask() -> bytes:
            try:
                if length is not None:
                    return bytes(obstore.get_range(self._client, path, start=start, length=length))
                options: GetOptions = {"range": {"offset": start}} if start else {}
                return bytes(obstore.get(self._client, path, options=options).bytes())
            except (BaseError, OSError, ValueError) as error:
                if beyond_end(error):
                    return b""
                raise

        return self._ask(key, ask)

    def download(self, key: str, target: Path) -> None:
        """Write the object to ``target``, all of it or nothing. Raises LocalDiskError when the disk is full.

        A large object whose key ends with its digest comes into ``.<digest>.part`` beside the target, which outlives
        a killed process or a lost connection: the next download into the same folder fetches only what is missing.
        """
        path = checked_key(key)

        def ask() -> tuple[int, bytes | None]:
            answer = obstore.get(self._client, path)
            size = int(answer.meta["size"])
            # A large one is dropped here, which closes its connection; the ranges open their own.
            return size, bytes(answer.bytes()) if size <= SINGLE_PUT_BYTES else None

        size, data = self._ask(key, ask)
        if data is None:
            self._download_ranges(path, target, size)
            return
        with PartialFile(target) as partial:
            partial.write_at(data, 0)
            partial.commit(size)

    def _download_ranges(self, key: str, target: Path, size: int) -> None:
        digest = named_digest(key)
        if digest is not None:
            with ResumableFile(target, digest, size, PART_BYTES) as resumable:
                if resumable.held:
                    self._fetch(key, size, resumable.missing(), resumable.write_part)
                    if not resumable.is_right():  # what a killed process left is not what it should be
                        resumable.reset()
                        self._fetch(key, size, resumable.missing(), resumable.write_part)
                    resumable.commit()
                    return
        with PartialFile(target) as partial:
            partial.reserve(size)
            self._fetch(key, size, range(0, size, PART_BYTES), partial.write_at)
            partial.commit(size)

    def _fetch(self, key: str, size: int, starts: Sequence[int], write: Callable[[bytes, int], None]) -> None:
        def fetch(start: int) -> None:
            length = min(PART_BYTES, size - start)
            data = self.get(key, start=start, length=length)
            if len(data) != length:
                raise StoreUnavailableError(self.uri, f"{key} ended {length - len(data)} bytes early")
            write(data, start)

        pool = ThreadPoolExecutor(PARALLEL_PARTS, thread_name_prefix="ranges")
        try:
            for _ in pool.map(fetch, starts):
                pass
        finally:
            pool.shutdown(cancel_futures=True)

    def head(self, key: str) -> ObjectInfo | None:
        """Return the object's key and size, or None."""
        path = checked_key(key)
        try:
            meta = self._ask(key, lambda: obstore.head(self._client, path))
        except ObjectNotFoundError:
            self._require_bucket()
            return None
        self._bucket_seen = True
        return ObjectInfo(key, int(meta["size"]), meta["last_modified"].timestamp())

    def _require_bucket(self) -> None:
        """An answer without a body does not say which is missing, object or bucket; one listing does."""
        if not self._bucket_seen:
            next(self._pages("", ""), None)
            self._bucket_seen = True

    def list(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[ObjectInfo]:
        """Yield objects whose key starts with ``prefix``, in ascending key order, after ``start_after``."""
        return islice(listed(self._pages, self.head, checked_prefix(prefix), start_after), limit)

    def _pages(self, folder: str, offset: str) -> Iterator[ObjectInfo]:
        pages = iter(obstore.list(self._client, folder or None, offset=offset or None, chunk_size=PAGE_KEYS))

        def turn() -> Sequence[obstore.ObjectMeta] | None:
            nonlocal pages
            try:
                return next(pages, None)
            except (BaseError, OSError, ValueError):
                # What failed would end here as if all had been listed: another try begins after the last key seen.
                pages = iter(obstore.list(self._client, folder or None, offset=offset or None, chunk_size=PAGE_KEYS))
                raise

        while page := self._ask(folder, turn):
            for meta in page:
                offset = str(meta["path"])
                yield ObjectInfo(offset, int(meta["size"]), meta["last_modified"].timestamp())

    def delete(self, keys: Sequence[str]) -> None:
        """Remove the objects; a missing one is no error. Goes on after a key that is refused, and names it then."""
        paths = [checked_key(key) for key in keys]
        for start in range(0, len(paths), DELETE_KEYS):
            self._delete_batch(paths[start : start + DELETE_KEYS])

    def _delete_batch(self, paths: Sequence[str]) -> None:
        try:
            self._ask("", lambda: obstore.delete(self._client, list(paths)))
        except ObjectNotFoundError:
            # Some services count a missing object as a failure, and obstore ends with the first of those.
            with ThreadPoolExecutor(PARALLEL_PARTS, thread_name_prefix="delete") as pool:
                list(pool.map(self._delete_one, paths))

    def _delete_one(self, path: str) -> None:
        try:
            self._ask(path, lambda: obstore.delete(self._client, path))
        except ObjectNotFoundError:
            self._require_bucket()

    def _ask(self, key: str, call: Callable[[], Answer]) -> Answer:
        """Return the answer of one request; try again after what obstore does not try again after."""
        attempt = 0
        while True:
            try:
                with self._pace.request():
                    answer = call()
            except (BaseError, OSError, ValueError) as error:
                busy = is_busy(error)
                if attempt == BUSY_TRIES - 1 or not (busy or is_damaged(error)):
                    raise explained(error, self.uri, key) from error
            else:
                self._pace.went_well()
                return answer
            if busy:
                self._pace.slow_down(attempt)
            else:
                time.sleep(jittered(AGAIN_SECONDS, attempt))
            attempt += 1


def beyond_end(error: Exception) -> bool:
    """Return whether a range was refused because the object ends before it, by the server or by obstore itself."""
    text = str(error)
    return status_of(text) == 416 or "Wanted range starting at" in text


def checked_parts(key: str, source: Path, part_bytes: int) -> Iterator[bytes]:
    """Yield the file in parts and raise IntegrityError at its end when it does not have the digest in its key."""
    check = NamedDigestCheck(key)
    for part in read_source(source, part_bytes):
        check.update(part)
        yield part
    check.finish()
