"""Local folders as they are stored and as they are written: plain files, plain names, nothing outside the folder."""

from __future__ import annotations

import os
import re
import stat
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from deepseek_ops.core.errors import LocalDiskError, PermanentError, TransientError

OWN_FOLDER = ".deepseek-ops"
"""What we keep inside a dataset folder (the stat cache); never part of a version."""
SKIPPED = frozenset({".git", OWN_FOLDER})
_LEFT_OUT = SKIPPED | {f"{name}/" for name in SKIPPED}
MAX_NAME = 1024
STAT_FIELDS = 4
_NO_STATS = (0,) * STAT_FIELDS
_INODE_MASK = (1 << 63) - 1
_NOT_PLAIN = re.compile(r"\\|[\0/]\.{0,2}(?=[\0/])|\0(?:" + "|".join(map(re.escape, sorted(SKIPPED))) + r")(?=[\0/])")
"""In paths with a NUL around each: a backslash, an empty, ``.`` or ``..`` part, or a name we skip at the top."""


@dataclass(eq=False)
class UnstorableFileError(PermanentError):
    """A file that would not mean the same on another machine."""

    path: str
    problem: str

    def __str__(self) -> str:
        return f"{self.path} {self.problem}; replace it by a plain file, rename it, or leave it out of the folder."


@dataclass(eq=False)
class UnsafeTargetError(PermanentError):
    """A stored path that must not be written where it would end up."""

    target: str
    path: str
    problem: str

    def __str__(self) -> str:
        return f"{self.path!r} is not written below {self.target}: it {self.problem}."


@dataclass(eq=False)
class ChangedWhileReadError(TransientError):
    """Somebody writes to a file that is being stored."""

    path: str

    def __str__(self) -> str:
        return f"{self.path} changed while it was read; store the folder when nobody writes to it."


class LocalFile(NamedTuple):
    """One file found below a folder, as its ``stat`` was."""

    name: str
    """Relative POSIX path."""
    size: int
    mtime_ns: int
    ctime_ns: int
    """Cannot be set back, as mtime can."""
    inode: int


def local_error(path: str | Path, error: OSError) -> LocalDiskError:
    """Return the error that says what this machine's disk refused."""
    return LocalDiskError(str(path), error.strerror or str(error))


def scan_folder(folder: Path) -> list[LocalFile]:
    """Return every file below ``folder`` sorted by name, ``.git`` left out.

    Raises UnstorableFileError for links, devices and unportable names, LocalDiskError for a folder that is missing.
    """
    return [file for run in scan_runs(folder) for file in run.files()]


@dataclass(frozen=True, slots=True)
class Run:
    """Files that follow each other in path order, as columns: a million of them are 100 MB, not a GB."""

    names: list[str]
    """Relative POSIX paths, ascending."""
    stats: array[int]
    """Size, mtime, ctime and inode of each, one after the other."""

    def files(self) -> Iterator[LocalFile]:
        """Yield the files one by one."""
        columns = (self.stats[column::STAT_FIELDS] for column in range(STAT_FIELDS))
        yield from map(LocalFile, self.names, *columns)


def scan_runs(folder: Path) -> Iterator[Run]:
    """Yield every file below ``folder`` in ascending path order, reading one folder at a time.

    Raises UnstorableFileError, LocalDiskError.
    """
    return _walk(str(folder), "")


def _walk(folder: str, prefix: str) -> Iterator[Run]:
    names, stats = _read_folder(folder, prefix)
    start = 0
    for index, name in enumerate(names):
        if name[-1] != "/":
            continue
        if index > start:
            yield Run(names[start:index], stats[start * STAT_FIELDS : index * STAT_FIELDS])
        yield from _walk(f"{folder}/{name[len(prefix) : -1]}", name)
        start = index + 1
    if start == 0 and names:
        yield Run(names, stats)
    elif start < len(names):
        yield Run(names[start:], stats[start * STAT_FIELDS :])


def _read_folder(folder: str, prefix: str) -> tuple[list[str], array[int]]:
    """Return what one folder holds: paths below the root, folders with "/" behind, and the stats (zeros for folders).

    A folder sorts as its name with "/", as the paths below it do.
    """
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with os.scandir(handle) as entries:
                found = sorted([e.name + "/" if e.is_dir(follow_symlinks=False) else e.name for e in entries])
            return _stats(folder, prefix, handle, [name for name in found if name not in _LEFT_OUT])
        finally:
            os.close(handle)
    except OSError as error:
        raise local_error(folder, error) from error


def _stats(folder: str, prefix: str, handle: int, found: list[str]) -> tuple[list[str], array[int]]:
    names: list[str] = []
    stats = array("q")
    for name in found:
        if name[-1] == "/":
            stats.extend(_NO_STATS)
        else:
            try:
                status = os.stat(name, dir_fd=handle, follow_symlinks=False)
            except FileNotFoundError:
                continue  # removed since the folder was read: the same as never seen
            if not stat.S_ISREG(status.st_mode):
                what = "is a symbolic link" if stat.S_ISLNK(status.st_mode) else "is no plain file"
                raise UnstorableFileError(f"{folder}/{name}", what)
            stats.extend((status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino & _INODE_MASK))
        names.append(prefix + name)
    _check_portable(names)
    return names, stats


def _check_portable(names: list[str]) -> None:
    """Look at all names at once; only when something is odd, at each."""
    together = "".join(names)
    if together.isascii() and "\\" not in together and max(map(len, names), default=0) <= MAX_NAME:
        return
    for name in names:
        if "\\" in name or len(name) > MAX_NAME or not _encodes(name):
            raise UnstorableFileError(repr(name), f"has a backslash, no valid UTF-8 or over {MAX_NAME} characters")


def _encodes(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def checked_targets(target: Path, names: Sequence[str], *, fresh: bool = False) -> list[str]:
    """Return where each stored path goes below ``target``, with the folders made; ``fresh`` says it is empty.

    Raises UnsafeTargetError for a path that leaves the target (also through a link that is there), appears twice, or
    is below another file of the set; nothing has been written then.
    """
    folders = _check_set(target, names)
    root = str(target)
    for folder in sorted(folders):  # parents sort before what is below them
        _make_folder(root, folder)
    paths = [f"{root}/{name}" for name in names]
    for name, path in zip(names, paths, strict=True) if not fresh else ():
        try:
            mode = os.lstat(path).st_mode
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(mode):
            raise UnsafeTargetError(root, name, "would replace a link, a folder or a device")
    return paths


def check_plain(target: Path, names: Sequence[str]) -> None:
    """Return if all are plain relative paths. Raises UnsafeTargetError."""
    together = "\0".join(["", *names, ""])
    plain = together.count("\0") == len(names) + 1 and not _NOT_PLAIN.search(together)
    if names and not (plain and max(map(len, names)) <= MAX_NAME):
        raise UnsafeTargetError(
            str(target), next(name for name in names if not _is_plain(name)), "is not a plain relative path"
        )


def _check_set(target: Path, names: Sequence[str]) -> set[str]:
    check_plain(target, names)
    seen: set[str] = set()
    folders: set[str] = set()
    for name in names:
        if name in seen:
            raise UnsafeTargetError(str(target), name, "appears twice")
        seen.add(name)
        folder = name.rpartition("/")[0]
        while folder and folder not in folders:
            folders.add(folder)
            folder = folder.rpartition("/")[0]
    if both := seen & folders:
        raise UnsafeTargetError(str(target), min(both), "is both a file and a folder")
    return folders


def _is_plain(name: str) -> bool:
    if not name or "\x00" in name or "\\" in name or len(name) > MAX_NAME:
        return False
    parts = name.split("/")
    return parts[0] not in SKIPPED and not any(part in ("", ".", "..") for part in parts)


def _make_folder(root: str, folder: str) -> None:
    path = f"{root}/{folder}"
    try:
        os.mkdir(path)  # noqa: PTH102  (per file of a large set: Path would double its cost)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            raise UnsafeTargetError(root, folder, "goes through a link or a file") from None
    except OSError as error:
        raise local_error(path, error) from error
