"""What a folder looked like when it was hashed last: files whose size, times and inode are the same are not read.

The cache is a sequence of chunks in path order, one for each manifest page, so that a scan in path order walks along it
with one chunk in memory, and a page in which nothing changed is recognised by two comparisons. It is written while a
commit goes on: one that is killed leaves its chunks beside the old cache, and the next try reads both.

As in Git, a file that was touched within the clock's grain of the scan is left out, because a later change could leave
its times as they are. The cache is a hint of this machine: a damaged or missing one costs time, never correctness.
Content is hashed again whenever it is sent, and whether a pack is really in the store is for the store to say.
"""

from __future__ import annotations

import os
import secrets
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import msgpack  # type: ignore[import-untyped]

from deepseek_ops.data.folders import OWN_FOLDER, STAT_FIELDS
from deepseek_ops.data.journal import HEAD, Journal, frames
from deepseek_ops.data.pages import DIGEST_BYTES, Location

GRAIN_NS = 50_000_000
"""Coarsest step of file times we trust: kernels tick at 1-10 ms, some file systems keep coarser times."""
_ROW = 8 * STAT_FIELDS
_YOUNG = -1
"""Stands for the size of a file that must not be recognised."""
_CHUNK, _LARGE, _PACK = 0, 1, 2
MAX_LEFTOVERS = 8
MAX_LEFT_PACKS = 16


@dataclass(frozen=True, slots=True)
class Chunk:
    """The files of one page, and where their contents were put."""

    names: bytes
    """Paths, joined by NUL."""
    stats: bytes
    digests: bytes
    page: str
    """Id of the page they make when none has a split."""
    store: str
    """Where the places are."""
    packs: bytes
    pack_numbers: bytes
    offsets: bytes
    begin: int = 0
    end: int = 0
    """Where it lies in the file it came from."""

    def contents(self) -> list[bytes]:
        """Return the digest of each file."""
        return _split(self.digests, DIGEST_BYTES)

    def rows(self) -> Iterator[tuple[tuple[str, bytes], bytes]]:
        """Yield ((path, stat), digest) of each file."""
        names = self.names.decode().split("\0")
        return zip(zip(names, _split(self.stats, _ROW), strict=True), self.contents(), strict=True)

    def places(self) -> dict[bytes, Location]:
        """Return where each content was put; it may have been removed since."""
        packs = [*_split(self.packs, DIGEST_BYTES), b""]
        numbers, offsets = array("q", self.pack_numbers), array("q", self.offsets)
        locations = map(Location, map(packs.__getitem__, numbers), offsets)
        return dict(zip(self.contents(), locations, strict=True))

    @property
    def first(self) -> bytes:
        return self.names.partition(b"\0")[0]

    @property
    def last(self) -> bytes:
        return self.names.rpartition(b"\0")[2]

    def body(self) -> bytes:
        fields = (self.names, self.stats, self.digests, self.page, self.store, self.packs)
        return bytes(msgpack.packb([_CHUNK, *fields, self.pack_numbers, self.offsets]))


class StatCache:
    """The cache of one folder during one commit; a context manager. Pages are asked for in path order."""

    def __init__(self, folder: Path, *, scanned_ns: int | None = None) -> None:
        """``scanned_ns`` is when the scan begins: now, if it is not said."""
        self._newest = (time.time_ns() if scanned_ns is None else scanned_ns) - GRAIN_NS
        self._folder = folder / OWN_FOLDER
        self._path = self._folder / "stat-cache"
        self._leftovers = _leftovers(self._folder)
        self._old = _Stream(self._path)
        self._streams = [*map(_Stream, self._leftovers), self._old]
        self._kept = len(HEAD)
        token = f"{os.getpid()}.{secrets.token_hex(4)}"
        self._journal = Journal(self._path.with_name(f"stat-cache.{token}"))
        self._packs = Journal(self._path.with_name(f"stat-cache.{token}.packs"))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._journal.close()
        self._packs.close()
        for stream in self._streams:
            stream.close()

    def look_up(self, names: Sequence[str], stats: array[int]) -> tuple[Chunk | None, list[Chunk]]:
        """Return the chunk that is exactly these files, or else those that may know some of them."""
        joined, row_bytes = "\0".join(names).encode(), stats.tobytes()
        first, last = names[0].encode(), names[-1].encode()
        near = [chunk for stream in self._streams for chunk in stream.overlapping(first, last)]
        exact = (chunk for chunk in near if chunk.stats == row_bytes and chunk.names == joined)
        return next(exact, None), near

    def digests(self, near: Sequence[Chunk], names: Sequence[str], stats: array[int]) -> list[bytes | None]:
        """Return the SHA-256 of each file that has not changed, None for the others."""
        row_bytes, joined = stats.tobytes(), "\0".join(names).encode()
        same = next((chunk for chunk in near if chunk.names == joined), None)
        if same is not None and len(near) == 1:  # the same names, some of them with other stats
            pairs = zip(_split(row_bytes, _ROW), _split(same.stats, _ROW), same.contents(), strict=True)
            return [content if new == old else None for new, old, content in pairs]
        rows = list(zip(names, _split(row_bytes, _ROW), strict=True))
        known: dict[tuple[str, bytes], bytes] = {}
        for chunk in reversed(near):
            known.update(chunk.rows())
        for stream in self._streams:
            known |= {row: stream.large[row] for row in rows if row in stream.large} if stream.large else {}
        return list(map(known.get, rows))

    def keep(self, chunk: Chunk) -> None:
        """Remember a chunk as it was read; while nothing has changed, nothing is written."""
        if not self._journal.begun and not self._leftovers and chunk.begin == self._kept:
            self._kept = chunk.end
        else:
            self._append(chunk.body)

    def remember(
        self,
        names: Sequence[str],
        stats: array[int],
        digests: Sequence[bytes],
        places: Sequence[Location],
        *,
        page: str,
        store: str,
    ) -> None:
        """Remember the files of a page that was stored; what is written outlives this process from now on."""
        if max(stats[1::STAT_FIELDS], default=0) >= self._newest:
            stats = array("q", stats)
            for index in range(0, len(stats), STAT_FIELDS):
                if stats[index + 1] >= self._newest:
                    stats[index] = _YOUNG
        lying_in, starts = zip(*places, strict=True)
        packs = sorted(set(lying_in) - {b""})
        number = {pack: index for index, pack in enumerate(packs)} | {b"": len(packs)}
        numbers, offsets = array("q", map(number.__getitem__, lying_in)), array("q", starts)
        joined = ("\0".join(names).encode(), stats.tobytes(), b"".join(digests))
        self._append(Chunk(*joined, page, store, b"".join(packs), numbers.tobytes(), offsets.tobytes()).body)

    def remember_large(self, name: str, stat: array[int], digest: bytes) -> None:
        """Remember one large file before its page is complete: to read it again may take hours. Thread-safe."""
        if stat[1] < self._newest:
            self._append(partial(msgpack.packb, [_LARGE, name, stat.tobytes(), digest]))

    def remember_pack(self, store: str, pack: bytes, digests: Sequence[bytes], sizes: Sequence[int]) -> None:
        """Remember what a pack that is up holds, until the pages that name it are complete. Thread-safe."""
        offsets = array("q", [0, *accumulate(sizes)][:-1]).tobytes()
        self._packs.append(lambda: bytes(msgpack.packb([_PACK, store, pack, b"".join(digests), offsets])))

    def left_places(self, store: str) -> dict[bytes, Location] | None:
        """Return where contents lie that commits sent to the store whose pages were not complete when they ended.

        None as long as the scan has not come to where they ended.
        """
        if any(stream.unread for stream in self._streams):
            return None
        places: dict[bytes, Location] = {}
        for stream in self._streams:
            for where, pack, digests, offsets in stream.packs:
                if where == store:
                    places |= zip(
                        _split(digests, DIGEST_BYTES), (Location(pack, at) for at in array("q", offsets)), strict=True
                    )
        return places

    def finish(self) -> None:
        """Make what was remembered the cache of the next commit; a read-only folder is left as it is."""
        if not self._journal.begun and not self._leftovers and self._kept >= self._old.size:
            return
        self._append(None)
        if self._journal.replace(self._path):
            for path in [*self._leftovers, self._packs.path]:
                with suppress(OSError):
                    path.unlink(missing_ok=True)

    def _append(self, body: Callable[[], bytes] | None) -> None:
        self._journal.append(body, beginning=lambda: self._old.beginning(self._kept))


class _Stream:
    """The chunks of one file, read along a scan in path order. What does not check ends it."""

    def __init__(self, path: Path) -> None:
        self._file: BinaryIO | None = None
        self.size = len(HEAD)
        self.large: dict[tuple[str, bytes], bytes] = {}
        """Files of 1 MiB and more whose page was not complete."""
        self.packs: deque[tuple[str, bytes, bytes, bytes]] = deque(maxlen=MAX_LEFT_PACKS)
        """Store, id, digests and offsets of the packs that were sent last."""
        with suppress(OSError):
            self._file = path.open("rb")
            if self._file.read(len(HEAD)) == HEAD:
                self.size = path.stat().st_size
        self._chunks = self._read()
        self._window: list[Chunk] = []
        self._next = next(self._chunks, None)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    @property
    def unread(self) -> bool:
        return self._next is not None

    def overlapping(self, first: bytes, last: bytes) -> list[Chunk]:
        """Return the chunks that may hold paths from ``first`` to ``last``; ask in ascending order."""
        if self._window and self._window[0].last < first:
            self._window = [chunk for chunk in self._window if chunk.last >= first]
        while self._next is not None and self._next.first <= last:
            if self._next.last >= first:
                self._window.append(self._next)
            self._next = next(self._chunks, None)
        return self._window

    def beginning(self, end: int) -> Iterator[bytes]:
        """Yield the file's bytes from its head to ``end``."""
        at = len(HEAD)
        while self._file is not None and at < end:
            data = os.pread(self._file.fileno(), min(1 << 20, end - at), at)
            if not data:
                return
            yield data
            at += len(data)

    def _read(self) -> Iterator[Chunk]:
        if self._file is None or self.size == len(HEAD):
            return
        with suppress(OSError):
            for begin, end, body in frames(self._file):
                kind, *fields = msgpack.unpackb(body)
                if kind == _CHUNK:
                    chunk = replace(Chunk(*fields), begin=begin, end=end)
                    last = chunk.last.decode()
                    self.large = {key: content for key, content in self.large.items() if key[0] > last}
                    yield chunk
                elif kind == _LARGE:
                    name, row, content = fields
                    self.large[name, row] = content
                else:
                    self.packs.append(tuple(fields))


def _leftovers(folder: Path) -> list[Path]:
    """Return what commits left that did not end, newest first."""
    try:
        found = [(path.stat().st_mtime_ns, path) for path in folder.glob("stat-cache.*")]
    except OSError:
        return []
    newest = [path for _, path in sorted(found, reverse=True)]
    for path in newest[MAX_LEFTOVERS:]:
        with suppress(OSError):
            path.unlink()
    return newest[:MAX_LEFTOVERS]


def _split(joined: bytes, size: int) -> list[bytes]:
    return [joined[start : start + size] for start in range(0, len(joined), size)]
