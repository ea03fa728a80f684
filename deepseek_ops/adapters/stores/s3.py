"""Objects in an S3 bucket, or in anything that speaks S3, through obstore.

obstore moves bytes with a tenth of boto3's CPU and has create-only puts. Every upload carries a SHA-256 that the
server checks. Large files go up in parts and come down in parallel ranges, within a fixed memory bound.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from obstore.exceptions import AlreadyExistsError, BaseError

from deepseek_ops.adapters.stores.disk import PartialFile, read_source, source_size
from deepseek_ops.adapters.stores.keys import NamedDigestCheck, checked_key, checked_prefix
from deepseek_ops.adapters.stores.s3_client import connect, explained, status_of, translated
from deepseek_ops.adapters.stores.s3_listing import listed
from deepseek_ops.adapters.stores.uris import StoreUri
from deepseek_ops.core.errors import (
    DeepSeekOpsError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreUnavailableError,
)
from deepseek_ops.core.ports import ObjectInfo

if TYPE_CHECKING:
    from obstore import GetOptions

PART_BYTES = 16 << 20
MAX_PARTS = 9_000
"""S3 takes 10,000 parts an upload."""
PARALLEL_PARTS = 4
"""Parts of one object in flight: 64 MiB of memory."""
SINGLE_PUT_BYTES = 2 * PART_BYTES
CONFLICT_TRIES = 6
PAGE_KEYS = 1000


class S3Store:
    """An ObjectStore on one bucket and prefix. Safe for use by many threads."""

    def __init__(self, uri: StoreUri, credentials: Mapping[str, str]) -> None:
        self.uri = str(uri)
        self._client = connect(uri, credentials)
        self._bucket_seen = False

    def __repr__(self) -> str:
        return f"S3Store({self.uri!r})"

    def create(self, key: str, data: bytes) -> None:
        """Store ``data`` if the key is free. Raises ObjectExistsError.

        When the answer of a successful put is lost, the error is StoreUnavailableError and a second call raises
        ObjectExistsError: a writer that must know whether it was itself reads back something only it could write.
        """
        path = checked_key(key)
        for attempt in range(CONFLICT_TRIES):
            try:
                with translated(self.uri, key):
                    self._client.put(path, data, mode="create")
            except ObjectExistsError as error:
                # 409: another conditional write on this key is in flight, and may yet fail.
                in_flight = isinstance(error.__cause__, AlreadyExistsError) and status_of(str(error.__cause__)) == 409
                if not in_flight or attempt == CONFLICT_TRIES - 1:
                    raise
                time.sleep(0.05 * 2**attempt)
            else:
                return

    def put_blob(self, key: str, source: bytes | Path) -> None:
        """Store content-addressed bytes. Raises IntegrityError when a file no longer has the digest in its key."""
        path = checked_key(key)
        if isinstance(source, Path):
            size = source_size(source)
            if size > SINGLE_PUT_BYTES:
                self._put_in_parts(path, source, size)
                return
            source = b"".join(_checked_parts(key, source, PART_BYTES))
        with translated(self.uri, key):
            self._client.put(path, source, use_multipart=len(source) > SINGLE_PUT_BYTES, chunk_size=PART_BYTES)

    def _put_in_parts(self, key: str, source: Path, size: int) -> None:
        part_bytes = max(PART_BYTES, -(-size // MAX_PARTS))
        failure: list[DeepSeekOpsError] = []

        def parts() -> Iterator[bytes]:
            try:
                yield from _checked_parts(key, source, part_bytes)
            except DeepSeekOpsError as error:
                failure.append(error)  # obstore aborts the upload and raises an error of its own
                raise

        try:
            self._client.put(key, parts(), use_multipart=True, chunk_size=part_bytes, max_concurrency=PARALLEL_PARTS)
        except (BaseError, OSError, ValueError, DeepSeekOpsError) as error:
            if failure:
                raise failure[0] from None
            raise explained(error, self.uri, key) from error

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        """Return the object, or what there is of ``length`` bytes from ``start`` (nothing beyond its end)."""
        path = checked_key(key)
        if length == 0:
            if self.head(key) is None:
                raise ObjectNotFoundError(f"{self.uri}/{key}")
            return b""
        try:
            if length is not None:
                return bytes(self._client.get_range(path, start=start, length=length))
            options: GetOptions = {"range": {"offset": start}} if start else {}
            return bytes(self._client.get(path, options=options).bytes())
        except (BaseError, OSError, ValueError) as error:
            if status_of(str(error)) == 416:
                return b""
            raise explained(error, self.uri, key) from error

    def download(self, key: str, target: Path) -> None:
        """Write the object to ``target``, all of it or nothing. Raises LocalDiskError when the disk is full."""
        path = checked_key(key)
        with translated(self.uri, key):
            answer = self._client.get(path)
        size = int(answer.meta["size"])
        with PartialFile(target) as partial:
            if size > SINGLE_PUT_BYTES:
                del answer  # closes its connection; the ranges open their own
                self._download_ranges(path, partial, size)
            else:
                with translated(self.uri, key):
                    data = bytes(answer.bytes())
                partial.write_at(data, 0)
            partial.commit(size)

    def _download_ranges(self, key: str, partial: PartialFile, size: int) -> None:
        def fetch(start: int) -> None:
            length = min(PART_BYTES, size - start)
            with translated(self.uri, key):
                data = bytes(self._client.get_range(key, start=start, length=length))
            if len(data) != length:
                raise StoreUnavailableError(self.uri, f"{key} ended {length - len(data)} bytes early")
            partial.write_at(data, start)

        partial.reserve(size)
        with ThreadPoolExecutor(PARALLEL_PARTS, thread_name_prefix="ranges") as pool:
            for _ in pool.map(fetch, range(0, size, PART_BYTES)):
                pass

    def head(self, key: str) -> ObjectInfo | None:
        """Return the object's key and size, or None."""
        path = checked_key(key)
        try:
            with translated(self.uri, key):
                meta = self._client.head(path)
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
        with translated(self.uri, folder):
            pages = iter(self._client.list(folder or None, offset=offset or None, chunk_size=PAGE_KEYS))
        while True:
            with translated(self.uri, folder):
                page = next(pages, None)
            if page is None:
                return
            for meta in page:
                yield ObjectInfo(str(meta["path"]), int(meta["size"]), meta["last_modified"].timestamp())

    def delete(self, keys: Sequence[str]) -> None:
        """Remove the objects; a missing one is no error."""
        paths = [checked_key(key) for key in keys]
        if paths:
            with translated(self.uri, ""):
                self._client.delete(paths)


def _checked_parts(key: str, source: Path, part_bytes: int) -> Iterator[bytes]:
    """Yield the file in parts and raise IntegrityError at its end when it does not have the digest in its key."""
    check = NamedDigestCheck(key)
    for part in read_source(source, part_bytes):
        check.update(part)
        yield part
    check.finish()
