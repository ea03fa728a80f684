"""What a folder on this machine was made from, and what was changed in it since.

Below the folder's ``.deepseek-ops/`` lie a record (dataset, version, branch, store, what part of it) and an index: each
file of the version with its digest, and with the size, times and inode it had when it was last known to be that. So a
status needs no network, and reads only files whose times say that they may have changed. Both are hints about a folder
that anybody may write to; what is committed is hashed when it is sent.

``journal`` is there while a switch to another version is being carried out (see ``switching``). Commands take turns by
a lock on the folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgpack  # type: ignore[import-untyped]
from pydantic import Field

from deepseek_ops.core.errors import PermanentError, TransientError
from deepseek_ops.core.records import Digest, Name, Record, canonical_json
from deepseek_ops.data.blobs import hash_file
from deepseek_ops.data.folders import OWN_FOLDER, LocalFile, local_error, scan_folder
from deepseek_ops.data.pages import Entry

RECORD = "worktree.json"
INDEX = "index"
JOURNAL = "journal.json"
GRAIN_NS = 50_000_000
"""A file written so shortly before the index may change again and keep its times."""
LOCK_SECONDS = 10.0
_HEAD = b"deepseek-ops index/1\n"
UNKNOWN = (-1, -1, -1)


@dataclass(eq=False)
class NotAWorktreeError(PermanentError):
    """A folder that no version was written to."""

    folder: str

    def __str__(self) -> str:
        return f"{self.folder} is no working folder of a dataset; make it one with `data checkout` or `data add`."


@dataclass(eq=False)
class WorktreeBusyError(TransientError):
    """Another command works on the folder."""

    folder: str

    def __str__(self) -> str:
        return f"another command has been working on {self.folder} for over {LOCK_SECONDS:.0f} s; try again after it."


class WorktreeRecord(Record):
    """What a folder was made from."""

    dataset: Name
    store: str = Field(description="URI of the object store, without credentials.")
    version: Digest | None = Field(default=None, description="Absent in a folder that was never committed.")
    branch: str = Field(default="", description="Where commits go; empty when it was made from a tag or an id.")
    patterns: tuple[str, ...] = Field(default=(), description="Globs of the part that is here; all without any.")
    splits: tuple[str, ...] = Field(default=(), description="Splits that are here; all without any.")
    pointer: str = Field(default="", description="Pointer file that follows commits.")

    @property
    def partial(self) -> bool:
        """Whether only a part of the version is here: files that are not are kept by a commit."""
        return bool(self.patterns or self.splits)


class Known(NamedTuple):
    """One file of the version: what it is, and how it looked when it was that."""

    entry: Entry
    times: tuple[int, int, int]
    """mtime and ctime in nanoseconds, inode; negative when it was not seen, or too young to be trusted."""

    def looks_like(self, file: LocalFile) -> bool:
        """Return whether a file has not been touched since."""
        return (file.size, *file[2:]) == (self.entry.size, *self.times)


Index = dict[str, Known]


@dataclass(frozen=True, slots=True)
class Status:
    """What a commit would take, each sorted."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    modified: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.modified)

    @property
    def paths(self) -> list[str]:
        """Every path that differs from the version, sorted."""
        return sorted({*self.added, *self.removed, *self.modified})


class Worktree:
    """A folder with its record. Take ``locked`` around whatever reads and then writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.own = self.folder / OWN_FOLDER

    @property
    def exists(self) -> bool:
        """Whether the folder has a record."""
        return (self.own / RECORD).is_file()

    @property
    def interrupted(self) -> bool:
        """Whether a switch has begun to change files and is not over."""
        return (self.own / JOURNAL).is_file()

    def record(self) -> WorktreeRecord:
        """Return what the folder was made from. Raises NotAWorktreeError, InvalidRecordError."""
        try:
            data = (self.own / RECORD).read_bytes()
        except FileNotFoundError:
            raise NotAWorktreeError(str(self.folder)) from None
        except OSError as error:
            raise local_error(self.own / RECORD, error) from error
        try:
            body = json.loads(data)
        except ValueError:
            body = None
        return WorktreeRecord.load(body if isinstance(body, dict) else {})

    def write_record(self, record: WorktreeRecord) -> None:
        """Replace the record."""
        self.write(RECORD, canonical_json(record.dump()))

    def write(self, name: str, data: bytes) -> None:
        """Replace a file of ours as a whole, on the disk before its name is."""
        temporary = self.own / f"{name}.{secrets.token_hex(6)}.new"
        try:
            self.own.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.own / name)
        except OSError as error:
            raise local_error(self.own / name, error) from error
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other commands out. Raises WorktreeBusyError."""
        try:
            self.own.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.own / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise local_error(self.own, error) from error
        try:
            deadline = time.monotonic() + LOCK_SECONDS
            while not _try_lock(handle):
                if time.monotonic() > deadline:
                    raise WorktreeBusyError(str(self.folder))
                time.sleep(0.05)
            yield
        finally:
            os.close(handle)

    def index(self) -> Index:
        """Return the files of the version that are, or should be, here. A damaged or missing index is empty."""
        try:
            data = (self.own / INDEX).read_bytes()
        except OSError:
            return {}
        digest, body = data[len(_HEAD) : len(_HEAD) + 32], data[len(_HEAD) + 32 :]
        if not data.startswith(_HEAD) or hashlib.sha256(body).digest() != digest:
            return {}
        paths, sizes, digests, splits, times = msgpack.unpackb(body)
        rows = zip(paths, sizes, splits or [""] * len(paths), zip(*[iter(times)] * 3, strict=True), strict=True)
        return {
            path: Known(Entry(path, size, digests[at * 32 : at * 32 + 32], split), stat)
            for at, (path, size, split, stat) in enumerate(rows)
        }

    def write_index(self, index: Mapping[str, Known]) -> None:
        """Replace the index; times that are too fresh to mean anything are left out."""
        newest = time.time_ns() - GRAIN_NS
        known = [index[path] for path in sorted(index)]
        times = [one.times if one.times[0] < newest else UNKNOWN for one in known]
        splits = [one.entry.split for one in known]
        columns = [
            [one.entry.path for one in known],
            [one.entry.size for one in known],
            b"".join([one.entry.digest for one in known]),
            splits if any(splits) else [],
            [number for row in times for number in row],
        ]
        body = msgpack.packb(columns)
        self.write(INDEX, _HEAD + hashlib.sha256(body).digest() + body)

    def status(self) -> Status:
        """Return what differs from the version. Reads files whose times are not as they were, remembers them if equal.

        Call it locked, after ``switching.recover``.
        """
        index, refreshed = self.index(), {}
        added, modified, seen = [], [], set()
        for file in scan_folder(self.folder):
            known = index.get(file.name)
            if known is None:
                added.append(file.name)
                continue
            seen.add(file.name)
            if known.looks_like(file):
                continue
            if self.is_now(file, known.entry):
                refreshed[file.name] = known._replace(times=file[2:])
            else:
                modified.append(file.name)
        if refreshed:
            self.write_index({**index, **refreshed})
        return Status(tuple(added), tuple(sorted(index.keys() - seen)), tuple(modified))

    def is_now(self, file: LocalFile, entry: Entry) -> bool:
        """Return whether a file's bytes are the entry's, by reading them."""
        if file.size != entry.size:
            return False
        return bytes.fromhex(hash_file(self.folder / file.name)[0]) == entry.digest


def known_files(folder: Path, entries: Iterable[Entry]) -> Index:
    """Return the index of files that have just been written and verified."""
    found: Index = {}
    for entry in entries:
        try:
            status = os.lstat(f"{folder}/{entry.path}")
        except OSError:
            found[entry.path] = Known(entry, UNKNOWN)
        else:
            found[entry.path] = Known(entry, (status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
    return found


def _try_lock(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
