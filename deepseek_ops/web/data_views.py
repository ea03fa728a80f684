"""What the data pages show, read from a repository in bounded time: a page never reads all of a large version."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import translate
from itertools import islice
from threading import BoundedSemaphore

from pydantic import JsonValue

from deepseek_ops.core.errors import PermanentError, TransientError
from deepseek_ops.core.records import Digest
from deepseek_ops.data import DatasetDiff, DatasetRepository, NoSuchFileError, Stored
from deepseek_ops.data.history import History, LogEntry, log_entry
from deepseek_ops.data.layout import blob_key
from deepseek_ops.data.packs import stored_files
from deepseek_ops.data.pages import LOOSE
from deepseek_ops.data.reading import find_file, read_stored
from deepseek_ops.data.refs import RefLog, all_tags, branch_heads, datasets

PAGE_FILES = 200
PAGES_READ = 40
"""Manifest pages that one answer reads: about 80,000 files."""
FACET_PAGES = 40
MAX_HISTORY = 1000
PREVIEW_ROWS = 50
FURTHEST_ROW = 5000
PREVIEW_BYTES = 64 << 10
MAX_COMPARED_BYTES = 256 << 20
_comparing = BoundedSemaphore(1)


@dataclass(eq=False)
class TooLargeToShowError(PermanentError):
    """Something that would keep the server busy for too long."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what} is too large to show here; {self.remedy}."


@dataclass(eq=False)
class BusyError(TransientError):
    """Another comparison is running."""

    def __str__(self) -> str:
        return "another comparison of records is running; try again in a moment."


@dataclass(frozen=True, slots=True)
class DatasetLine:
    """One dataset in the list."""

    name: str
    branches: int
    version: Digest
    """Of ``main``, or of the first branch; empty when every branch was deleted."""
    at: str
    num_files: int
    num_bytes: int
    message: str


@dataclass(frozen=True, slots=True)
class DatasetView:
    """Branches, tags and history of one dataset."""

    name: str
    branches: dict[str, Digest]
    tags: dict[str, Digest]
    history: list[LogEntry]
    """Each version before what it was made from."""
    more: bool
    main: list[LogEntry]
    """The main branch (or the first one), newest first: what the plot shows."""


@dataclass(frozen=True, slots=True)
class FilesView:
    """A stretch of a version's files."""

    files: list[Stored]
    next_after: str
    """Where the next stretch begins; empty at the end."""


@dataclass(frozen=True, slots=True)
class Preview:
    """The beginning of a file: records, or text, or bytes."""

    kind: str
    """``records``, ``text`` or ``bytes``."""
    rows: list[tuple[int, JsonValue, str]]
    """Number, value and what is wrong with it."""
    text: str
    more: bool


def list_datasets(repository: DatasetRepository) -> list[DatasetLine]:
    """Return every dataset of the store with its newest version."""
    return [_line(repository, name) for name in datasets(repository.store)]


def _line(repository: DatasetRepository, name: str) -> DatasetLine:
    heads = branch_heads(repository.store, name)
    if not heads:
        return DatasetLine(name, 0, "", "", 0, 0, "every branch was deleted")
    head = heads.get("main") or next(iter(heads.values()))
    entry = log_entry(head.version, repository.describe(head.version), head.at)
    return DatasetLine(name, len(heads), entry.version, entry.at, entry.num_files, entry.num_bytes, entry.message)


def view_dataset(repository: DatasetRepository, name: str, *, limit: int) -> DatasetView | None:
    """Return a dataset with at most ``limit`` versions of its history, or None when there is none of that name."""
    store = repository.store
    heads = branch_heads(store, name)
    if not heads:
        return None
    limit = min(max(limit, 1), MAX_HISTORY)
    at: dict[str, str] = {}
    for branch in islice(heads, 50):
        for entry in RefLog(store, name, branch).entries(limit=limit):
            at.setdefault(entry.version, entry.at)
    history = History(store)
    walked = list(islice(history.walk([head.version for head in heads.values()]), limit + 1))
    entries = [log_entry(version, history.body(version), at.get(version, "")) for version in walked[:limit]]
    own = {entry.version for entry in entries}
    branch = "main" if "main" in heads else next(iter(heads))
    return DatasetView(
        name=name,
        branches={branch: head.version for branch, head in heads.items()},
        tags={tag: version for tag, version in all_tags(store).items() if version in own},
        history=entries,
        more=len(walked) > limit,
        main=repository.log(name, branch=branch, limit=limit),
    )


def view_files(
    repository: DatasetRepository, version: Digest, *, pattern: str = "", split: str = "", after: str = "", limit: int
) -> FilesView:
    """Return the next files behind the path ``after`` that match the glob and are of the split."""
    tree = repository.tree(version)
    wanted = re.compile(translate(pattern if any(char in pattern for char in "*?[") else f"*{pattern}*"))
    found: list[Stored] = []
    pages = tree.pages
    begin = pages.index(tree.holding([after])[0]) if after and pages else 0
    last = after
    for ref in pages[begin : begin + PAGES_READ]:
        for file in stored_files(tree.read_one(ref)):
            path = file.entry.path
            if path <= after or (pattern and not wanted.match(path)) or (split and file.entry.split != split):
                continue
            if len(found) == limit:
                return FilesView(found, last)
            found.append(file)
            last = path
    ends = begin + PAGES_READ >= len(pages)
    # Nothing matched for many pages: go on from where this look ended.
    return FilesView(found, "" if ends else max(last, pages[begin + PAGES_READ - 1].first))


def split_counts(repository: DatasetRepository, version: Digest) -> dict[str, int] | None:
    """Return files by split; None for a version that is too large to count here."""
    tree = repository.tree(version)
    if len(tree.pages) > FACET_PAGES:
        return None
    counts: dict[str, int] = {}
    for page in tree.read(tree.pages):
        for file in stored_files(page):
            counts[file.entry.split] = counts.get(file.entry.split, 0) + 1
    return dict(sorted(counts.items()))


def file_of(repository: DatasetRepository, version: Digest, path: str) -> Stored:
    """Return one file of a version. Raises NoSuchFileError."""
    found = find_file(repository.tree(version), path)
    if found is None:
        raise NoSuchFileError(version, path)
    return found


class StoredFile(io.RawIOBase):
    """A stored file that can be read anywhere, in ranges: Parquet begins at its end."""

    def __init__(self, repository: DatasetRepository, file: Stored) -> None:
        self._store = repository.store
        self._key = blob_key(file.entry.digest.hex())
        self._size = file.entry.size
        self._data = None if file.location == LOOSE else read_stored(repository.store, file)
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        self._at = max(0, start + offset)
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        length = min(len(buffer), max(self._size - self._at, 0))
        if self._data is not None:
            data = self._data[self._at : self._at + length]
        else:
            data = self._store.get(self._key, start=self._at, length=length) if length else b""
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def preview(repository: DatasetRepository, file: Stored, *, start: int = 1) -> Preview:
    """Return records from number ``start`` on, or for a file without records its first bytes.

    Raises TooLargeToShowError, IntegrityError.
    """
    from deepseek_ops.data.content.rows import format_of, read_rows

    path = file.entry.path
    source = io.BufferedReader(StoredFile(repository, file), 1 << 20)
    if format_of(path) is None:
        return _plain(source.read(PREVIEW_BYTES + 1))
    start = max(start, 1)
    if start > FURTHEST_ROW:
        raise TooLargeToShowError(f"{path} from record {start} on", "download the file")
    rows = list(islice(read_rows(path, source), start - 1, start + PREVIEW_ROWS))
    shown = [(row.row, row.value, row.problem) for row in rows[:PREVIEW_ROWS]]
    return Preview("records", shown, "", more=len(rows) > PREVIEW_ROWS)


def _plain(data: bytes) -> Preview:
    more, data = len(data) > PREVIEW_BYTES, data[:PREVIEW_BYTES]
    for cut in range(4):  # the last character may be cut
        try:
            text = data[: len(data) - cut].decode()
        except UnicodeDecodeError:
            continue
        if "\x00" not in text:
            return Preview("text", [], text, more)
    return Preview("bytes", [], "\n".join(_hex_lines(data[:1024])), len(data) > 1024)


def _hex_lines(data: bytes) -> Iterator[str]:
    for start in range(0, len(data), 16):
        chunk = data[start : start + 16]
        readable = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in chunk)
        yield f"{start:06x}  {chunk.hex(' '):<47}  {readable}"


def changed_bytes(repository: DatasetRepository, old: Digest, new: Digest, diff: DatasetDiff) -> int:
    """Return how much comparing the records of two versions would read; stops counting above the limit."""
    total = 0
    sides: Iterable[tuple[Digest, tuple[str, ...]]] = (
        (old, (*diff.removed, *diff.modified)),
        (new, (*diff.added, *diff.modified)),
    )
    for version, paths in sides:
        tree = repository.tree(version)
        wanted = set(paths)
        for page in tree.read(tree.holding(paths)):
            total += sum(file.entry.size for file in stored_files(page) if file.entry.path in wanted)
            if total > MAX_COMPARED_BYTES:
                return total
    return total


def compare_records(repository: DatasetRepository, old: Digest, new: Digest, diff: DatasetDiff) -> dict[str, JsonValue]:
    """Return what changed record by record, as JSON. One at a time. Raises TooLargeToShowError, BusyError."""
    from deepseek_ops.data.content.record_diff import DiffOptions, record_diff

    if changed_bytes(repository, old, new, diff) > MAX_COMPARED_BYTES:
        raise TooLargeToShowError("this change", f"use: deepseek-ops data diff --records {old[:12]} {new[:12]}")
    if not _comparing.acquire(blocking=False):
        raise BusyError
    try:
        return record_diff(repository, old, new, DiffOptions(languages=False)).dump()
    finally:
        _comparing.release()


def lineage_text(body: dict[str, JsonValue]) -> str:
    """Return a commit's lineage as indented JSON, or nothing."""
    lineage = body.get("lineage")
    return json.dumps(lineage, indent=2, ensure_ascii=False) if lineage else ""
