"""Packs: small files end to end in objects of about 12 MiB, because a request costs more than the bytes in it.

A pack has no framing and no index: the manifest pages say which bytes are which file, and the file's digest says
whether they are. As with pages, a pack's id is the digest of what it means, the digests and sizes of its files in
order: its bytes were hashed file by file and are not hashed again. Packs are filled in path order, so a commit that was
killed makes the same packs again and finds those that were already up.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import groupby, islice
from operator import itemgetter
from types import TracebackType
from typing import NamedTuple, Self, cast

from deepseek_ops.core.errors import IntegrityError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import Digest, digest_of
from deepseek_ops.data.layout import pack_key
from deepseek_ops.data.pages import LOOSE, Entry, Location, Page

PACK_BYTES = 12 << 20
"""A pack is closed when it has so many bytes: it ends below 13 MiB."""
_PACK_HEAD = b"deepseek-ops pack/1\n"
PACK_FILES = 1 << 17
"""Or so many files: their pages wait for it in memory."""
_OFFSET_BITS = 24
_OFFSET_MASK = (1 << _OFFSET_BITS) - 1
UPLOADS = 4
"""Packs on their way at once; each is held in memory."""
GAP_BYTES = 256 << 10
"""Reading so many unwanted bytes is cheaper than another request."""
READ_BYTES = 16 << 20

Sent = Callable[[bytes, Sequence[bytes], Sequence[int]], None]
"""Takes a pack's id and the digests and sizes of its files in order."""


class PackWriter:
    """Collects small files and uploads full packs in the background. Used by one thread, as a context manager.

    A file's place is known by a number until its pack is up; ``location`` turns it into the real one.
    """

    def __init__(self, store: ObjectStore, *, remember: int | None = None, sent: Sent | None = None) -> None:
        """``remember`` bounds the contents among which equal ones are found; ``sent`` hears of each pack that is up."""
        self._store = store
        self._remember = remember
        self._sent = sent
        self._parts: list[bytes] = []
        self._digests: list[bytes] = []
        self._size = 0
        self._places: dict[bytes, int] = {}
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

    def place(self, digest: bytes) -> int | None:
        """Return the place of a file that is in a pack of this writer, as far as it is remembered."""
        return self._places.get(digest)

    def add(self, digest: bytes, data: bytes) -> int:
        """Put a file into the open pack and return its place; waits while too many packs are on their way."""
        place = len(self._packs) << _OFFSET_BITS | self._size
        self._places[digest] = place
        self._parts.append(data)
        self._digests.append(digest)
        self._size += len(data)
        if self._size >= PACK_BYTES or len(self._parts) >= PACK_FILES:
            self.close_pack()
        return place

    def close_pack(self) -> None:
        """Send the open pack on its way, if it holds anything."""
        if not self._parts:
            return
        if len(self._packs) >= UPLOADS:
            self._packs[-UPLOADS].result()
        self._packs.append(self._pool.submit(self._upload, self._digests, self._parts))
        self._digests, self._parts, self._size = [], [], 0
        if self._remember is not None and len(self._places) > self._remember:
            for digest in list(islice(self._places, len(self._places) // 2)):
                del self._places[digest]

    def _upload(self, digests: list[bytes], parts: list[bytes]) -> bytes:
        sizes = list(map(len, parts))
        digest = pack_digest(digests, sizes)
        data = b"".join(parts)
        parts.clear()
        present = self._store.head(pack_key(digest))
        if present is None or present.size != len(data):
            self._store.put_blob(pack_key(digest), data)
        if self._sent is not None:
            self._sent(bytes.fromhex(digest), digests, sizes)
        return bytes.fromhex(digest)

    def closed(self, place: int) -> bool:
        """Return whether the pack with this place is on its way or there; -1 is no place and waits for nothing."""
        return place >> _OFFSET_BITS < len(self._packs)

    def sent(self, place: int) -> bool:
        """Return whether the pack with this place needs no more waiting."""
        number = place >> _OFFSET_BITS
        return number < 0 or (number < len(self._packs) and self._packs[number].done())

    def locations(self, places: Iterable[int | Location]) -> list[Location]:
        """Return where files lie, once their packs are up; what is in the store already stays as it is."""
        found = list(places)
        packs: dict[int, bytes] = {}
        for index, place in [(index, place) for index, place in enumerate(found) if type(place) is int]:
            number = place >> _OFFSET_BITS
            if number not in packs:
                packs[number] = self._packs[number].result()
            found[index] = Location(packs[number], place & _OFFSET_MASK)
        return cast("list[Location]", found)

    def finish(self) -> dict[bytes, Location]:
        """Upload what is left and return where each file lies, once all packs are up."""
        self.close_pack()
        return dict(zip(self._places, self.locations(self._places.values()), strict=True))


def pack_digest(digests: Sequence[bytes], sizes: Iterable[int]) -> Digest:
    """Return the id of the pack with these files."""
    lengths = array("Q", sizes)
    if sys.byteorder == "big":
        lengths.byteswap()
    return digest_of(_PACK_HEAD + b"".join(digests) + lengths.tobytes())


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

    @property
    def length(self) -> int:
        return self.end - self.start


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


def fetch_packed(store: ObjectStore, read: PackRead) -> bytes:
    """Return the bytes of a request. Raises ObjectNotFoundError."""
    return store.get(pack_key(read.pack.hex()), start=read.start, length=read.end - read.start) if read.length else b""


def read_packed(
    store: ObjectStore, read: PackRead, check: Callable[[bytes], bool] = lambda _digest: True
) -> Iterator[tuple[Stored, memoryview]]:
    """Yield each file of a request with its bytes, those verified whose digest ``check`` picks.

    Raises ObjectNotFoundError, and IntegrityError naming the file; also where the pack ends before the file does.
    """
    return unpacked(store.uri, read, fetch_packed(store, read), check)


def unpacked(
    uri: str, read: PackRead, data: bytes, check: Callable[[bytes], bool]
) -> Iterator[tuple[Stored, memoryview]]:
    """Yield each file of a request with its part of ``data``, as ``read_packed`` does."""
    view = memoryview(data)
    sha256, start = hashlib.sha256, read.start
    for file in read.files:
        entry, (_, offset) = file
        begin = offset - start
        content = view[begin : begin + entry.size]
        if len(content) != entry.size or check(entry.digest):
            actual = sha256(content).digest()
            if actual != entry.digest:
                where = f"{entry.path} in {uri}/{pack_key(read.pack.hex())}"
                raise IntegrityError(where, entry.digest.hex(), actual.hex())
        yield file, content
