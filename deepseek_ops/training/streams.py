"""The streams of a run in the store: how segments are named and packed, and the one reader of them.

A stream is a prefix such as ``runs/<plan>/metrics`` with numbered, create-only segments of JSON lines:

    000007.jsonl.zst          segment 7: one zstd frame
    000063-000000.jsonl.zst   segments 0 to 63 put together: their 64 frames, one after the other
    000007.jsonl              segment 7 as earlier releases wrote it

A joined object is written by the writer of its parts, which are removed afterwards. Its name sorts right before that of
its last part, so a reader that is anywhere inside still comes to it, and its frames keep the parts apart, so nothing is
read twice. A finished stream is a few objects; while it runs, the newest rows are seconds old.

Besides what it reports, every row has ``at`` (Unix seconds) and ``attempt`` (the fencing token of its writer).
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pydantic import JsonValue

from deepseek_ops.core.errors import ObjectNotFoundError, PermanentError

if TYPE_CHECKING:
    from deepseek_ops.core.ports import ObjectInfo, ObjectStore

METRICS, EVENTS, TELEMETRY = "metrics", "events", "telemetry"
"""Streams of a run: of its steps, of what happened, and one per node of its machines."""
MAX_SEGMENT_BYTES = 64 << 20
"""Largest segment that is unpacked: rows come from a store that others may write."""
MAX_LISTINGS = 1000
"""How often a reader lists again because a segment it was about to read has been joined."""
STAMPS = frozenset({"at", "attempt"})
"""Keys of a row that say when and by whom it was written; everything else is what was reported."""

Row = dict[str, JsonValue]

_NAME = re.compile(r"(\d{6,})(?:-(\d{6,}))?\.jsonl(\.zst)?")


@dataclass(eq=False)
class DamagedSegmentError(PermanentError):
    """An object of a stream does not hold what its name says."""

    key: str
    problem: str

    def __str__(self) -> str:
        return f"segment {self.key} cannot be read: {self.problem}. Delete it to read the rest of the stream."


@dataclass(frozen=True, slots=True)
class Segment:
    """One segment of a stream."""

    number: int
    rows: list[Row]
    modified: float
    """When its object was stored, Unix seconds."""


@dataclass(frozen=True, slots=True)
class _Object:
    first: int
    last: int
    key: str
    modified: float


def segment_name(last: int, *, first: int | None = None) -> str:
    """Return the name of a segment, or of the segments from ``first`` to ``last`` joined."""
    return f"{last:06d}.jsonl.zst" if first is None else f"{last:06d}-{first:06d}.jsonl.zst"


def numbers_of(name: str) -> tuple[int, int] | None:
    """Return the first and the last segment in the object of this name; None when it is no segment."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    last = int(found[1])
    return (last if found[2] is None else int(found[2])), last


def pack(lines: Iterable[bytes]) -> bytes:
    """Return JSON lines as one zstd frame; equal lines give equal bytes."""
    import zstandard

    return zstandard.ZstdCompressor(level=3, write_content_size=True).compress(b"".join(line + b"\n" for line in lines))


def read(store: ObjectStore, prefix: str, *, after: int = -1) -> Iterator[Segment]:
    """Yield the segments of a stream in order, from the one after number ``after``.

    What is written while it is read may or may not be seen; ask again from the last number. Memory is bounded by the
    largest object. Raises DamagedSegmentError, and what the store raises.
    """
    folder = f"{prefix.rstrip('/')}/"
    for turn in itertools.count():
        for item in _listed(store, folder, after):
            try:
                body = store.get(item.key)
            except ObjectNotFoundError:
                if turn >= MAX_LISTINGS:
                    raise
                break  # joined with its neighbours since it was listed: list again
            for number, text in zip(range(item.first, item.last + 1), _frames(item, body), strict=True):
                if number > after:
                    after = number
                    yield Segment(number, _rows(item.key, text), item.modified)
        else:
            return


def tail(store: ObjectStore, prefix: str, rows: int) -> list[Row]:
    """Return the newest ``rows`` rows of a stream, oldest first; reads no more objects than it has to."""
    folder = f"{prefix.rstrip('/')}/"
    for _ in range(3):
        found: list[Row] = []
        try:
            for item in reversed(_listed(store, folder, -1)):
                own = [row for text in _frames(item, store.get(item.key)) for row in _rows(item.key, text)]
                found = own + found
                if len(found) >= rows:
                    break
        except ObjectNotFoundError:
            continue  # joined while we read: the names have changed
        return found[-rows:]
    return [row for segment in read(store, prefix) for row in segment.rows][-rows:]


def current(rows: Iterable[Mapping[str, JsonValue]]) -> list[Row]:
    """Return the rows that hold of a stream of steps: each step once, in order.

    A training that resumed or rewound reports steps again, and what it had reported beyond them no longer is its past:
    a step that goes back replaces everything from there on. Rows of an attempt that is not the newest, written late by
    processes that did not know it yet, are left out.
    """
    kept: list[Row] = []
    newest = 0
    for row in rows:
        step, attempt = row.get("step"), row.get("attempt", 0)
        if not isinstance(step, int) or not isinstance(attempt, int) or attempt < newest:
            continue
        newest = attempt
        while kept and int(str(kept[-1]["step"])) >= step:
            kept.pop()
        kept.append(dict(row))
    return kept


def streams_of(store: ObjectStore, prefix: str) -> list[str]:
    """Return the names of the streams below a prefix, such as the nodes below ``runs/<plan>/telemetry``."""
    folder = f"{prefix.rstrip('/')}/"
    return sorted({item.key.removeprefix(folder).partition("/")[0] for item in store.list(folder)})


def _listed(store: ObjectStore, folder: str, after: int) -> list[_Object]:
    """Return the objects to read, in order, without the parts that a joined one among them holds."""
    start = f"{folder}{after:06d}.jsonl.zst" if after >= 0 else ""
    found = [item for info in store.list(folder, start_after=start) if (item := _object(info, folder)) is not None]
    joined = [(item.first, item.last) for item in found if item.first < item.last]
    kept, reach = [], after
    for item in sorted(found, key=lambda item: (item.last, item.first)):
        covered = any(first <= item.first and item.last <= last for first, last in joined)
        if item.last > reach and (item.first < item.last or not covered):
            kept.append(item)
            reach = item.last
    return kept


def _object(info: ObjectInfo, folder: str) -> _Object | None:
    numbers = numbers_of(info.key.removeprefix(folder))
    return None if numbers is None else _Object(*numbers, info.key, info.modified)


def _frames(item: _Object, body: bytes) -> list[bytes]:
    """Return the segments in an object, unpacked: as many as its name says."""
    if item.key.endswith(".jsonl"):
        return [body]
    import zstandard

    found = []
    try:
        while body:
            size = zstandard.get_frame_parameters(body).content_size
            if size > MAX_SEGMENT_BYTES:
                raise DamagedSegmentError(
                    item.key, f"a frame says it holds {size} bytes, more than {MAX_SEGMENT_BYTES}"
                )
            unpacker = zstandard.ZstdDecompressor().decompressobj()
            found.append(unpacker.decompress(body))
            body = unpacker.unused_data
    except zstandard.ZstdError as error:
        raise DamagedSegmentError(item.key, str(error)) from error
    if len(found) != item.last - item.first + 1:
        raise DamagedSegmentError(item.key, f"it holds {len(found)} segments")
    return found


def _rows(key: str, text: bytes) -> list[Row]:
    try:
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    except ValueError as error:
        raise DamagedSegmentError(key, f"not JSON lines: {error}") from error
    return [row for row in rows if isinstance(row, dict)]
