"""Local folders as they are stored and as they are written: plain files, plain names, nothing outside the folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from deepseek_ops.core.errors import LocalDiskError, PermanentError, TransientError

OWN_FOLDER = ".deepseek-ops"
"""What we keep inside a dataset folder (the stat cache); never part of a version."""
SKIPPED = frozenset({".git", OWN_FOLDER})
MAX_NAME = 1024


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
    return sorted(_scan(str(folder), ""))


def _scan(folder: str, prefix: str) -> Iterator[LocalFile]:
    try:
        with os.scandir(folder) as entries:
            children = list(entries)
    except OSError as error:
        raise local_error(folder, error) from error
    for child in children:
        if child.name in SKIPPED:
            continue
        try:
            status = child.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue  # removed since the folder was read: the same as never seen
        except OSError as error:
            raise local_error(child.path, error) from error
        if stat.S_ISREG(status.st_mode):
            name = _portable(prefix + child.name)
            yield LocalFile(name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        elif stat.S_ISDIR(status.st_mode):
            yield from _scan(child.path, f"{prefix}{child.name}/")
        else:
            raise UnstorableFileError(child.path, "is a symbolic link" if child.is_symlink() else "is no plain file")


def _portable(name: str) -> str:
    if "\\" in name or len(name) > MAX_NAME or not (name.isascii() or _encodes(name)):
        raise UnstorableFileError(repr(name), f"has a backslash, no valid UTF-8 or over {MAX_NAME} characters")
    return name


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


def _check_set(target: Path, names: Iterable[str]) -> set[str]:
    seen: set[str] = set()
    folders: set[str] = set()
    for name in names:
        if not _is_plain(name):
            raise UnsafeTargetError(str(target), name, "is not a plain relative path")
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
