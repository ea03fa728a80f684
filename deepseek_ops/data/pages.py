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
from functools import cached_property
from itertools import chain, repeat
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


@dataclass(frozen=True)
class Page:
    """A run of files, sorted by path, and where each lies: as columns, because most readers want few of the rows."""

    paths: list[str]
    sizes: list[int]
    digests: list[bytes]
    splits: list[str]
    """Empty when no file has a split."""
    packs: list[bytes]
    """Ends with the empty one, for what lies in no pack."""
    pack_numbers: list[int]
    offsets: list[int]

    @cached_property
    def entries(self) -> list[Entry]:
        return list(map(Entry, self.paths, self.sizes, self.digests, self.splits or repeat("")))

    @cached_property
    def locations(self) -> list[Location]:
        return list(map(Location, map(self.packs.__getitem__, self.pack_numbers), self.offsets))

    def rows(self) -> Iterator[tuple[str, int, bytes, str]]:
        """Yield what each file is, as plain tuples."""
        return zip(self.paths, self.sizes, self.digests, self.splits or repeat(""), strict=False)

    def places(self) -> dict[bytes, Location]:
        """Return where each content lies."""
        return dict(zip(self.digests, self.locations, strict=True))


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
        if ends_page(entry.path) or len(page) >= MAX_ENTRIES:
            yield page
            page = []
    if page:
        yield page


def ends_page(path: str) -> bool:
    """Return whether a page ends with this path, whatever else is in it."""
    return zlib.crc32(path.encode()) & CUT_MASK == 0


def page_ends(paths: Sequence[str]) -> list[int]:
    """Return the positions after which a page ends, for paths in order; ``MAX_ENTRIES`` ends some earlier."""
    mask, crc = CUT_MASK, zlib.crc32
    return [at for at, path in enumerate(paths, 1) if crc(path.encode()) & mask == 0]


def page_digest(entries: Iterable[Entry]) -> Digest:
    """Return the id of a page."""
    paths, sizes, digests, splits = [list(column) for column in zip(*entries, strict=True)] or [[], [], [], []]
    return column_digest(paths, sizes, digests, splits)


def column_digest(
    paths: Sequence[str], sizes: Sequence[int], digests: Sequence[bytes], splits: Sequence[str] = ()
) -> Digest:
    """Return the id of the page with these columns; no splits means that no file has one."""
    return _canonical_digest(paths, sizes, b"".join(digests), splits)


def _canonical_digest(paths: Sequence[str], sizes: Sequence[int], joined: bytes, splits: Sequence[str]) -> Digest:
    hexes = joined.hex("\0", DIGEST_BYTES).split("\0") if joined else []
    fields = chain.from_iterable(zip(paths, map(str, sizes), hexes, splits or repeat(""), strict=False))
    lines = "\0".join(chain(fields, [""] if paths else []))
    return hashlib.sha256(_PAGE_HEAD + lines.encode()).hexdigest()


def tree_digest(pages: Iterable[PageRef]) -> Digest:
    """Return the id of a tree: equal trees hold equal files in equal splits."""
    lines = "".join([f"{first}\0{files}\0{size}\0{digest}\0" for first, files, size, digest in pages])
    return hashlib.sha256(_TREE_HEAD + lines.encode()).hexdigest()


def page_ref(entries: Sequence[Entry]) -> PageRef:
    """Return the root page's line for a page."""
    return PageRef(entries[0].path, len(entries), sum(entry.size for entry in entries), page_digest(entries))


def encode_page(entries: Sequence[Entry], locations: Mapping[bytes, Location]) -> bytes:
    """Return a page as it is stored."""
    paths, sizes, digests, splits = (list(column) for column in zip(*entries, strict=True))
    return encode_columns(paths, sizes, digests, splits, [locations[digest] for digest in digests])


def encode_columns(
    paths: Sequence[str],
    sizes: Sequence[int],
    digests: Sequence[bytes],
    splits: Sequence[str],
    places: Sequence[Location],
) -> bytes:
    """Return a page as it is stored: columns in MessagePack, compressed."""
    lying_in, offsets = zip(*places, strict=True)
    packs = sorted(set(lying_in) - {b""})
    number = {pack: index for index, pack in enumerate(packs)} | {b"": -1}
    columns = {
        "paths": paths,
        "sizes": sizes,
        "digests": b"".join(digests),
        "splits": splits if any(splits) else [],
        "packs": b"".join(packs),
        "pack": list(map(number.__getitem__, lying_in)),
        "offset": offsets,
    }
    return _compressed(columns)


def decode_page(data: bytes, expected: Digest) -> Page:
    """Return the page. Raises IntegrityError when it is not what its id says."""
    columns = _Columns(data, f"manifest page {expected}", expected)
    paths, splits = columns.strings("paths"), columns.strings("splits")
    packs = [*columns.digests("packs"), b""]  # -1 is the last one: no pack
    numbers, offsets = columns.integers("pack", floor=-1), columns.integers("offset")
    sizes, digests = columns.integers("sizes"), columns.digests("digests")
    lengths = {len(sizes), len(digests), len(numbers), len(offsets), len(splits) or len(paths)}
    if lengths != {len(paths)} or max(numbers, default=-1) >= len(packs) - 1:
        raise columns.broken()
    columns.expect(column_digest(paths, sizes, digests, splits))
    if max(sizes, default=0) >= LOOSE_BYTES and any(
        number >= 0 and size >= LOOSE_BYTES for number, size in zip(numbers, sizes, strict=True)
    ):
        raise columns.broken("a packed file of 1 MiB or more")
    return Page(paths, sizes, digests, splits, packs, numbers, offsets)


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
    return zstandard.ZstdCompressor(level=1).compress(msgpack.packb(columns))


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
        if not isinstance(values, list) or set(map(type, values)) - {str}:
            raise self.broken()
        return values

    def integers(self, name: str, *, floor: int = 0) -> list[int]:
        values = self._columns.get(name)
        if not isinstance(values, list) or set(map(type, values)) - {int} or min(values, default=floor) < floor:
            raise self.broken()
        return values

    def digests(self, name: str) -> list[bytes]:
        joined = self._columns.get(name)
        if not isinstance(joined, bytes) or len(joined) % DIGEST_BYTES:
            raise self.broken()
        return [joined[start : start + DIGEST_BYTES] for start in range(0, len(joined), DIGEST_BYTES)]
