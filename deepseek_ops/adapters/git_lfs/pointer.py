"""Git LFS pointer files: the three lines that stand in Git for an object in the store.

Light on purpose: the transfer agent and the hooks import it, and are started for every push.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deepseek_ops.core.errors import LocalDiskError, PermanentError

VERSION = "https://git-lfs.github.com/spec/v1"
MAX_POINTER_BYTES = 1024
"""git-lfs reads no further than this to tell a pointer from content."""

_VERSIONS = (VERSION, "https://hawser.github.com/spec/v1", "http://git-media.io/v/2")
_KEY = re.compile(r"[a-z0-9.-]+")
_OID = re.compile(r"sha256:([0-9a-f]{64})")
_MAX_SIZE = 1 << 63


@dataclass(eq=False)
class LfsPointerError(PermanentError):
    """A file that begins as a pointer and is none that can be followed."""

    file: str
    problem: str

    def __str__(self) -> str:
        return f"{self.file} is a damaged Git LFS pointer: {self.problem}. Take it from another commit, or add it anew."


@dataclass(frozen=True, slots=True)
class LfsPointer:
    """What a pointer file says."""

    oid: str
    """SHA-256 of the content, which is the object's name in the store."""
    size: int


def pointer_text(pointer: LfsPointer) -> str:
    """Return the canonical text: the one ``git lfs clean`` would write, so that Git sees no change."""
    return f"version {VERSION}\noid sha256:{pointer.oid}\nsize {pointer.size}\n"


def looks_like_pointer(data: bytes) -> bool:
    """Return whether the beginning of a file is that of a pointer."""
    return any(data.startswith(b"version " + version.encode()) for version in _VERSIONS)


def parse_pointer(data: bytes, *, file: str) -> LfsPointer | None:
    """Return the pointer, or None for any other content. Raises LfsPointerError for a damaged or extended one."""
    if len(data) > MAX_POINTER_BYTES or not looks_like_pointer(data):
        return None
    try:
        lines = data.decode("utf-8").rstrip("\r\n").splitlines()
    except UnicodeDecodeError:
        raise LfsPointerError(file, "it is not UTF-8") from None
    values: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition(" ")
        if not _KEY.fullmatch(key) or key in values:
            raise LfsPointerError(file, f"the line {line[:80]!r} is not a new `key value`")
        values[key] = value
    return _checked(values, file)


def _checked(values: dict[str, str], file: str) -> LfsPointer:
    if extended := next((key for key in values if key.startswith("ext-")), ""):
        raise LfsPointerError(file, f"its content went through the extension {extended}, which only git-lfs can undo")
    oid, size = _OID.fullmatch(values.get("oid", "")), values.get("size", "")
    if oid is None:
        raise LfsPointerError(file, f"oid is {values.get('oid', '')[:80]!r}, not sha256: and 64 hex digits")
    if not (size.isascii() and size.isdigit()) or len(size) > 19 or int(size) >= _MAX_SIZE:
        raise LfsPointerError(file, f"size is {size[:40]!r}, not a number of bytes")
    return LfsPointer(oid[1], int(size))


def read_pointer_file(path: Path) -> LfsPointer | None:
    """Return the pointer in a file, or None when it holds content. Raises LfsPointerError, LocalDiskError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_POINTER_BYTES + 1)
    except OSError as error:
        raise LocalDiskError(str(path), error.strerror or "cannot be read") from error
    return parse_pointer(data, file=str(path))


def pointers_below(folder: Path) -> Iterator[tuple[str, LfsPointer]]:
    """Yield (relative POSIX path, pointer) of every pointer file, sorted; links and ``.git`` are not followed."""
    yield from _pointers(folder, "")


def _pointers(folder: Path, prefix: str) -> Iterator[tuple[str, LfsPointer]]:
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.is_dir(follow_symlinks=False):
            if entry.name != ".git":
                yield from _pointers(Path(entry.path), f"{prefix}{entry.name}/")
        elif _small_file(entry) and (pointer := read_pointer_file(Path(entry.path))):
            yield f"{prefix}{entry.name}", pointer


def _small_file(entry: os.DirEntry[str]) -> bool:
    return entry.is_file(follow_symlinks=False) and entry.stat(follow_symlinks=False).st_size <= MAX_POINTER_BYTES
