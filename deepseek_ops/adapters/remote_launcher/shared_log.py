"""A stream of bytes that many machines append to and anybody reads, made of create-only objects.

Every piece is stored under the position where it begins: ``<prefix>p/000000012345``. Who wants to append creates the
key at the end; of two who try, one wins, and the other goes on behind it. So the order is total, a position never
changes its meaning, and a reader needs one listing from where it left off. Pieces are never removed (a key that is
free again could be taken twice); many small ones are also stored as one large object, ``<prefix>w/<position>``, so
that reading a long stream again takes few requests.

Positions count bytes, or whole lines (``lines=True``): the events of a job are counted, its log is not.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from deepseek_ops.core.errors import ObjectExistsError, ObjectNotFoundError, StoreUnavailableError, TransientError
from deepseek_ops.core.ports import ObjectStore

MAX_PIECE_BYTES = 256 << 10
MAX_PIECE_LINES = 500
WHOLE_PIECES = 64
"""Pieces that are stored once more as one object."""
PAGE_KEYS = 1000
READ_BYTES = 16 << 20
_PARALLEL = 8
_TRIES = 64


@dataclass(eq=False)
class CrowdedLogError(TransientError):
    """Too many others appended at the same time."""

    uri: str

    def __str__(self) -> str:
        return f"{self.uri} was appended to by others {_TRIES} times in a row; append again a little later."


@dataclass(frozen=True, slots=True)
class Piece:
    """One stored piece: the position where it begins, and its bytes."""

    position: int
    data: bytes


class SharedLog:
    """One stream. An instance belongs to one thread; it remembers where the end was last."""

    def __init__(self, store: ObjectStore, prefix: str, *, lines: bool = False) -> None:
        self._store = store
        self._prefix = prefix
        self._lines = lines
        self._end: int | None = None
        self._whole_end = 0
        self._boundary: int | None = None

    def append(self, data: bytes) -> int:
        """Store ``data`` (at most MAX_PIECE_BYTES, whole lines where lines are counted); return where it begins.

        Raises StoreUnavailableError, after which the same data may be appended again: it is stored once, because a
        piece that is found where it was to go, with the same bytes, is taken for our own.
        """
        if self._end is None:
            self._end = self._find_end(0)
        for _ in range(_TRIES):
            position = self._end
            try:
                self._store.create(self._key(position), data)
            except ObjectExistsError:
                if self._get(self._key(position)) != data:
                    self._end = self._find_end(position)
                    continue
            self._end = position + self._measure(data)
            return position
        raise CrowdedLogError(f"{self._store.uri}/{self._prefix}")

    def read(self, position: int, most: int = READ_BYTES) -> list[Piece]:
        """Return what begins at ``position`` and follows it, in order, up to about ``most`` bytes; [] at the end."""
        keys = self._keys_from(position)
        if not keys or keys[0][0] != position:
            inside = self._inside(position) if position and position != self._boundary else None
            if inside is not None:
                return [inside]
            if not keys:
                self._boundary = position
            return []
        wholes = self._wholes_from(position) if len(keys) >= WHOLE_PIECES else {}
        pieces = list(self._walk(position, keys, wholes, most))
        if pieces:
            self._boundary = pieces[-1].position + self._measure(pieces[-1].data)
        return pieces

    def condense(self) -> bool:
        """Store the next WHOLE_PIECES pieces as one object more; return whether there were so many. One writer only."""
        if not self._whole_end:
            self._whole_end = self._after_wholes()
        keys = self._keys_from(self._whole_end)[:WHOLE_PIECES]
        if len(keys) < WHOLE_PIECES:
            return False
        data = b"".join(self._fetch([self._key(position) for position, _ in keys]))
        with suppress(ObjectExistsError):  # by an earlier attempt, from the same pieces
            self._store.create(f"{self._prefix}w/{self._whole_end:014d}", data)
        self._whole_end += self._measure(data)
        return True

    def _walk(self, position: int, keys: list[tuple[int, int]], wholes: dict[int, int], most: int) -> Iterator[Piece]:
        """Yield pieces from ``position`` on: a whole where one begins, else the small ones, fetched side by side."""
        sizes, taken = dict(keys), 0
        while taken < most:
            if position in wholes:
                data = self._store.get(f"{self._prefix}w/{position:014d}")
                yield Piece(position, data)
                taken, position = taken + len(data), position + self._measure(data)
                continue
            batch = self._batch(position, sizes, wholes, most - taken)
            if not batch:
                return
            for start, data in zip(batch, self._fetch([self._key(start) for start in batch]), strict=True):
                yield Piece(start, data)
                taken, position = taken + len(data), start + self._measure(data)

    def _batch(self, position: int, sizes: dict[int, int], wholes: dict[int, int], most: int) -> list[int]:
        """Return the starts of the pieces to fetch next; they lie in ``sizes``, without a gap by construction."""
        batch: list[int] = []
        for start in sorted(start for start in sizes if start >= position):
            if (batch and start in wholes) or most <= 0:
                break
            batch.append(start)
            most -= sizes[start]
        return batch if batch and batch[0] == position else []

    def _inside(self, position: int) -> Piece | None:
        """Return the rest of the piece that ``position`` lies in, or None when it lies in none."""
        window = MAX_PIECE_LINES if self._lines else MAX_PIECE_BYTES
        last: int | None = None
        for info in self._store.list(f"{self._prefix}p/", start_after=self._key(max(position - window, 0) - 1)):
            start = _position(info.key)
            if start >= position:
                break
            last = start
        if last is None:
            return None
        data = self._store.get(self._key(last))
        skipped = position - last
        rest = b"".join(data.splitlines(keepends=True)[skipped:]) if self._lines else data[skipped:]
        return Piece(position, rest) if rest else None

    def _keys_from(self, position: int) -> list[tuple[int, int]]:
        found = self._store.list(f"{self._prefix}p/", start_after=self._key(position - 1), limit=PAGE_KEYS)
        return [(_position(info.key), info.size) for info in found]

    def _wholes_from(self, position: int) -> dict[int, int]:
        before = f"{self._prefix}w/{max(position - 1, 0):014d}" if position else ""
        found = self._store.list(f"{self._prefix}w/", start_after=before, limit=PAGE_KEYS)
        return {_position(info.key): info.size for info in found}

    def _after_wholes(self) -> int:
        last = max((_position(info.key) for info in self._store.list(f"{self._prefix}w/")), default=None)
        if last is None:
            return 0
        return last + self._measure(self._store.get(f"{self._prefix}w/{last:014d}"))

    def _find_end(self, position: int) -> int:
        """Return where the stream ends, which is at ``position`` or beyond."""
        last, size = position, 0
        for info in self._store.list(f"{self._prefix}p/", start_after=self._key(position - 1)):
            last, size = _position(info.key), info.size
        return last + (self._measure(self._store.get(self._key(last))) if self._lines and size else size)

    def _fetch(self, keys: list[str]) -> list[bytes]:
        if len(keys) < _PARALLEL:
            return [self._store.get(key) for key in keys]
        with ThreadPoolExecutor(_PARALLEL) as pool:
            return list(pool.map(self._store.get, keys))

    def _get(self, key: str) -> bytes:
        try:
            return self._store.get(key)
        except ObjectNotFoundError as error:  # taken a moment ago and gone: retired, or not to be seen yet
            raise StoreUnavailableError(self._store.uri, f"{key} is taken and cannot be read") from error

    def _key(self, position: int) -> str:
        return f"{self._prefix}p/{position:014d}" if position >= 0 else f"{self._prefix}p/"

    def _measure(self, data: bytes) -> int:
        return data.count(b"\n") if self._lines else len(data)


def cut(data: bytes, *, lines: bool, last: bool = False) -> bytes:
    """Return the beginning of ``data`` that may go as one piece: whole lines, else (a log only) whole characters.

    ``last`` says that nothing will follow, so that a line without its end goes too, as a log's last words.
    """
    piece = data[:MAX_PIECE_BYTES]
    if lines:
        count = 0
        end = 0
        while count < MAX_PIECE_LINES and (found := piece.find(b"\n", end)) >= 0:
            end, count = found + 1, count + 1
        return piece[:end]
    end = piece.rfind(b"\n") + 1
    if end:
        return piece[:end]
    if last or len(data) > MAX_PIECE_BYTES:
        return piece if len(piece) == len(data) else _whole_characters(piece)
    return b""


def _whole_characters(piece: bytes) -> bytes:
    """Return ``piece`` without a character of UTF-8 that is cut at its end."""
    for back in range(1, min(4, len(piece)) + 1):
        byte = piece[-back]
        if byte < 0x80:
            break
        if byte >= 0xC0:
            needed = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return piece[:-back] if back < needed else piece
    return piece


def _position(key: str) -> int:
    return int(key.rpartition("/")[2])
