"""Packs: small files end to end in objects of about 12 MiB, because a request costs more than the bytes in it.

A pack has no framing and no index: the manifest pages say which bytes are which file, and the file's digest says
whether they are. Packs are filled in path order, so a commit that was killed makes the same packs again and finds
those that were already up.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby
from operator import itemgetter
from types import TracebackType
from typing import NamedTuple, Self

from deepseek_ops.core.errors import IntegrityError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import digest_of
from deepseek_ops.data.layout import pack_key
from deepseek_ops.data.pages import LOOSE, Entry, Location, Page

PACK_BYTES = 12 << 20
"""A pack is closed when it has so many bytes: it ends below 13 MiB."""
UPLOADS = 4
"""Packs on their way at once; each is held in memory."""
GAP_BYTES = 256 << 10
"""Reading so many unwanted bytes is cheaper than another request."""
READ_BYTES = 16 << 20


class PackWriter:
    """Collects small files and uploads full packs in the background. Used by one thread, as a context manager."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._parts: list[bytes] = []
        self._size = 0
        self._pack_number = 0
        self._places: dict[bytes, tuple[int, int]] = {}
        self._packs: list[Future[bytes]] = []
        self._pool = ThreadPoolExecutor(UPLOADS, thread_name_prefix="packs")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._places

    def add(self, digest: bytes, data: bytes) -> None:
        """Put a file into the open pack; waits while too many packs are on their way."""
        self._places[digest] = (self._pack_number, self._size)
        self._parts.append(data)
        self._size += len(data)
        if self._size >= PACK_BYTES:
            self._close_pack()

    def _close_pack(self) -> None:
        if len(self._packs) >= UPLOADS:
            self._packs[-UPLOADS].result()
        self._packs.append(self._pool.submit(self._upload, self._parts))
        self._parts, self._size = [], 0
        self._pack_number += 1

    def _upload(self, parts: list[bytes]) -> bytes:
        data = b"".join(parts)
        digest = digest_of(data)
        present = self._store.head(pack_key(digest))
        if present is None or present.size != len(data):
            self._store.put_blob(pack_key(digest), data)
        return bytes.fromhex(digest)

    def finish(self) -> dict[bytes, Location]:
        """Upload what is left and return where each file lies, once all packs are up."""
        if self._parts:
            self._close_pack()
        packs = [upload.result() for upload in self._packs]
        return {digest: Location(packs[number], offset) for digest, (number, offset) in self._places.items()}


class Stored(NamedTuple):
    """One file to read back."""

    entry: Entry
    location: Location


class PackRead(NamedTuple):
    """One request: a stretch of a pack and the files in it."""

    pack: bytes
    start: int
    end: int
    files: list[Stored]


def stored_files(page: Page) -> list[Stored]:
    """Return the files of a page with their places."""
    return [Stored(*row) for row in zip(page.entries, page.locations, strict=True)]


def one_by_one(read: PackRead) -> Iterator[PackRead]:
    """Yield a request for each file of a request: to tell the damaged from their neighbours."""
    for file in read.files:
        yield PackRead(read.pack, file.location.offset, file.location.offset + file.entry.size, [file])


def plan_reads(files: Iterable[Stored]) -> Iterator[PackRead]:
    """Yield the requests that read these packed files: neighbours together, at most 16 MiB each."""
    packed = sorted((file for file in files if file.location != LOOSE), key=itemgetter(1))
    for pack, members in groupby(packed, key=lambda file: file.location.pack):
        current: PackRead | None = None
        for file in members:
            start, end = file.location.offset, file.location.offset + file.entry.size
            fits = current is not None and start - current.end <= GAP_BYTES and end - current.start <= READ_BYTES
            if current is not None and fits:
                current.files.append(file)
                current = current._replace(end=max(current.end, end))
            else:
                if current is not None:
                    yield current
                current = PackRead(pack, start, end, [file])
        if current is not None:
            yield current


def read_packed(
    store: ObjectStore, read: PackRead, check: Callable[[bytes], bool] = lambda _digest: True
) -> Iterator[tuple[Stored, memoryview]]:
    """Yield each file of a request with its bytes, those verified whose digest ``check`` picks.

    Raises IntegrityError naming the file; also where the pack ends before the file does.
    """
    key = pack_key(read.pack.hex())
    data = memoryview(store.get(key, start=read.start, length=read.end - read.start)) if read.end > read.start else b""
    view = memoryview(data)
    for file in read.files:
        begin = file.location.offset - read.start
        content = view[begin : begin + file.entry.size]
        if len(content) == file.entry.size and not check(file.entry.digest):
            yield file, content
            continue
        actual = hashlib.sha256(content).digest()
        if actual != file.entry.digest:
            where = f"{file.entry.path} in {store.uri}/{key}"
            raise IntegrityError(where, file.entry.digest.hex(), actual.hex())
        yield file, content
