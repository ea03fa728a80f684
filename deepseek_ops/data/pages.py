"""Manifest pages: the files of a version in sorted runs of about 2,048, cut where a path's own hash says so.

Because a cut depends on one path only, two versions that differ in a few files share all other pages, and comparing
them reads the pages that differ. A page's id is the digest of what it *means* (paths, sizes, file digests, splits) in
a canonical text, not of its compressed bytes: another compressor, or another place of the same files, keeps the id.
Where a file lies is a hint beside that; a wrong one cannot deliver wrong bytes, since every file is hashed when read.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

import msgpack  # type: ignore[import-untyped]
import zstandard

from deepseek_ops.core.errors import IntegrityError
from deepseek_ops.core.records import Digest

CUT_MASK = 2047
MAX_ENTRIES = 8 * (CUT_MASK + 1)
MAX_PAGE_BYTES = 256 << 20
"""A page that unpacks to more is not one of ours."""
_PAGE_HEAD = b"deepseek-ops page/1\n"
_TREE_HEAD = b"deepseek-ops tree/1\n"
DIGEST_BYTES = 32
LOOSE_BYTES = 1 << 20
"""Files from this size on are objects of their own and lie in no pack."""


class Entry(NamedTuple):
    """One file of a version."""

    path: str
    size: int
    digest: bytes
    split: str


class Location(NamedTuple):
    """Where a file's bytes lie: in a pack from an offset on, or (no pack) as an object of their own."""

    pack: bytes
    offset: int


LOOSE = Location(b"", 0)


@dataclass(frozen=True, slots=True)
class Page:
    """A run of entries, sorted by path, and where each lies."""

    entries: Sequence[Entry]
    locations: Sequence[Location]


class PageRef(NamedTuple):
    """One line of a root page."""

    first: str
    """Path of the page's first entry."""
    num_files: int
    num_bytes: int
    digest: Digest


def cut(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Yield the pages of entries that are sorted by path."""
    page: list[Entry] = []
    for entry in entries:
        page.append(entry)
        if zlib.crc32(entry.path.encode()) & CUT_MASK == 0 or len(page) >= MAX_ENTRIES:
            yield page
            page = []
    if page:
        yield page


def page_digest(entries: Iterable[Entry]) -> Digest:
    """Return the id of a page."""
    lines = "".join([f"{path}\0{size}\0{digest.hex()}\0{split}\0" for path, size, digest, split in entries])
    return hashlib.sha256(_PAGE_HEAD + lines.encode()).hexdigest()


def tree_digest(pages: Iterable[PageRef]) -> Digest:
    """Return the id of a tree: equal trees hold equal files in equal splits."""
    lines = "".join([f"{first}\0{files}\0{size}\0{digest}\0" for first, files, size, digest in pages])
    return hashlib.sha256(_TREE_HEAD + lines.encode()).hexdigest()


def page_ref(entries: Sequence[Entry]) -> PageRef:
    """Return the root page's line for a page."""
    return PageRef(entries[0].path, len(entries), sum(entry.size for entry in entries), page_digest(entries))


def encode_page(entries: Sequence[Entry], locations: Mapping[bytes, Location]) -> bytes:
    """Return a page as it is stored: columns in MessagePack, compressed."""
    packs = sorted({locations[entry.digest].pack for entry in entries} - {b""})
    number = {pack: index for index, pack in enumerate(packs)} | {b"": -1}
    places = [locations[entry.digest] for entry in entries]
    splits = [entry.split for entry in entries]
    columns = {
        "paths": [entry.path for entry in entries],
        "sizes": [entry.size for entry in entries],
        "digests": b"".join([entry.digest for entry in entries]),
        "splits": splits if any(splits) else [],
        "packs": b"".join(packs),
        "pack": [number[place.pack] for place in places],
        "offset": [place.offset for place in places],
    }
    return _compressed(columns)


def decode_page(data: bytes, expected: Digest) -> Page:
    """Return the page. Raises IntegrityError when it is not what its id says."""
    columns = _Columns(data, f"manifest page {expected}", expected)
    paths = columns.strings("paths")
    splits = columns.strings("splits") or [""] * len(paths)
    packs = [*columns.digests("packs"), b""]  # -1 is the last one: no pack
    numbers, offsets = columns.integers("pack", floor=-1), columns.integers("offset")
    sizes, digests = columns.integers("sizes"), columns.digests("digests")
    lengths = {len(sizes), len(digests), len(splits), len(numbers), len(offsets)}
    if lengths != {len(paths)} or max(numbers, default=-1) >= len(packs) - 1:
        raise columns.broken()
    entries = [Entry(*row) for row in zip(paths, sizes, digests, splits, strict=True)]
    columns.expect(page_digest(entries))
    if any(number >= 0 and size >= LOOSE_BYTES for number, size in zip(numbers, sizes, strict=True)):
        raise columns.broken("a packed file of 1 MiB or more")
    return Page(entries, [Location(packs[number], offset) for number, offset in zip(numbers, offsets, strict=True)])


def encode_tree(pages: Sequence[PageRef]) -> bytes:
    """Return a root page as it is stored."""
    columns = {
        "first": [page.first for page in pages],
        "files": [page.num_files for page in pages],
        "bytes": [page.num_bytes for page in pages],
        "digests": b"".join([bytes.fromhex(page.digest) for page in pages]),
    }
    return _compressed(columns)


def decode_tree(data: bytes, expected: Digest) -> list[PageRef]:
    """Return the lines of a root page. Raises IntegrityError when it is not what its id says."""
    columns = _Columns(data, f"root page {expected}", expected)
    first, files, sizes = columns.strings("first"), columns.integers("files"), columns.integers("bytes")
    digests = columns.digests("digests")
    if not len(first) == len(files) == len(sizes) == len(digests):
        raise columns.broken()
    rows = zip(first, files, sizes, digests, strict=True)
    pages = [PageRef(path, count, size, digest.hex()) for path, count, size, digest in rows]
    columns.expect(tree_digest(pages))
    return pages


def _compressed(columns: Mapping[str, object]) -> bytes:
    return zstandard.ZstdCompressor(level=3).compress(msgpack.packb(columns))


class _Columns:
    """The columns of a stored page, each checked for what it must be: pages come from outside."""

    def __init__(self, data: bytes, what: str, expected: Digest) -> None:
        self._what = what
        self._expected = expected
        columns: object = None
        with suppress(zstandard.ZstdError, ValueError, msgpack.UnpackException):
            if zstandard.frame_content_size(data) <= MAX_PAGE_BYTES:
                columns = msgpack.unpackb(zstandard.ZstdDecompressor().decompress(data, max_output_size=MAX_PAGE_BYTES))
        if not isinstance(columns, dict):
            raise self.broken()
        self._columns: dict[object, object] = columns

    def broken(self, actual: str = "no such page") -> IntegrityError:
        return IntegrityError(self._what, self._expected, actual)

    def expect(self, actual: Digest) -> None:
        if actual != self._expected:
            raise self.broken(actual)

    def strings(self, name: str) -> list[str]:
        values = self._columns.get(name)
        if not isinstance(values, list) or not all(type(value) is str for value in values):
            raise self.broken()
        return values

    def integers(self, name: str, *, floor: int = 0) -> list[int]:
        values = self._columns.get(name)
        if not isinstance(values, list) or not all(type(value) is int and value >= floor for value in values):
            raise self.broken()
        return values

    def digests(self, name: str) -> list[bytes]:
        joined = self._columns.get(name)
        if not isinstance(joined, bytes) or len(joined) % DIGEST_BYTES:
            raise self.broken()
        return [joined[start : start + DIGEST_BYTES] for start in range(0, len(joined), DIGEST_BYTES)]
