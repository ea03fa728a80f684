"""Local folders as they are stored and as they are written: plain files, plain names, nothing outside the folder."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from deepseek_ops.core.errors import LocalDiskError, PermanentError
from deepseek_ops.core.records import FileEntry

SKIPPED = frozenset({".git"})
_NO_DIGEST = "0" * 64


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


@dataclass(frozen=True, slots=True)
class LocalFile:
    """One file found below a folder."""

    name: str
    """Relative POSIX path."""
    path: Path
    size: int
    mtime_ns: int
    inode: int


def scan_folder(folder: Path) -> list[LocalFile]:
    """Return every file below ``folder`` sorted by name, ``.git`` left out.

    Raises UnstorableFileError for links, devices and unportable names, LocalDiskError for a folder that is missing.
    """
    found = list(_scan(folder, ""))
    found.sort(key=lambda file: file.name)
    return found


def _scan(folder: Path, prefix: str) -> Iterator[LocalFile]:
    try:
        with os.scandir(folder) as entries:
            children = list(entries)
    except OSError as error:
        raise LocalDiskError(str(folder), error.strerror or str(error)) from error
    for child in children:
        if child.name in SKIPPED:
            continue
        name = prefix + child.name
        try:
            status = child.stat(follow_symlinks=False)
        except OSError as error:
            raise LocalDiskError(child.path, error.strerror or str(error)) from error
        if stat.S_ISDIR(status.st_mode):
            yield from _scan(Path(child.path), f"{name}/")
        elif stat.S_ISREG(status.st_mode):
            _check_name(name)
            yield LocalFile(name, Path(child.path), status.st_size, status.st_mtime_ns, status.st_ino)
        else:
            raise UnstorableFileError(child.path, "is a symbolic link" if child.is_symlink() else "is no plain file")


def _check_name(name: str) -> None:
    try:
        name.encode()
        FileEntry(path=name, size=0, digest=_NO_DIGEST)
    except (UnicodeEncodeError, ValidationError):
        raise UnstorableFileError(
            repr(name), "has a name that is not portable (backslash, bad UTF-8, too long)"
        ) from None


def checked_targets(target: Path, names: Sequence[str]) -> list[Path]:
    """Return where each stored path goes below ``target``, with the folders made.

    Raises UnsafeTargetError for a path that leaves the target (also through a link that is there), appears twice, or
    is below another file of the set; nothing has been written then.
    """
    _check_set(target, names)
    made: set[Path] = {target}
    paths = []
    for name in names:
        path = target / name
        _make_parents(target, path.parent, made, name)
        if path.is_symlink() or path.is_dir():
            raise UnsafeTargetError(str(target), name, "would replace a link or a folder")
        paths.append(path)
    return paths


def _check_set(target: Path, names: Iterable[str]) -> None:
    seen: set[str] = set()
    folders: set[str] = set()
    for name in names:
        parts = name.split("/")
        if not name or "\x00" in name or "\\" in name or any(part in ("", ".", "..") for part in parts):
            raise UnsafeTargetError(str(target), name, "is not a plain relative path")
        if name in seen:
            raise UnsafeTargetError(str(target), name, "appears twice")
        seen.add(name)
        folders.update("/".join(parts[:end]) for end in range(1, len(parts)))
    if both := seen & folders:
        raise UnsafeTargetError(str(target), min(both), "is both a file and a folder")


def _make_parents(target: Path, folder: Path, made: set[Path], name: str) -> None:
    if folder in made:
        return
    _make_parents(target, folder.parent, made, name)
    try:
        folder.mkdir(exist_ok=True)
    except FileExistsError:
        raise UnsafeTargetError(str(target), name, "goes through a file") from None
    except OSError as error:
        raise LocalDiskError(str(folder), error.strerror or str(error)) from error
    if folder.is_symlink():
        raise UnsafeTargetError(str(target), name, "goes through a symbolic link")
    made.add(folder)
