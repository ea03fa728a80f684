"""A version as one archive file: equal versions give equal bytes, whoever writes them and when."""

from __future__ import annotations

import errno
import io
import os
import secrets
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal, cast

from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import Digest
from deepseek_ops.data.blobs import hash_file
from deepseek_ops.data.exchange.ordered import contents
from deepseek_ops.data.folders import local_error
from deepseek_ops.data.packs import Stored

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

ArchiveFormat = Literal["tar", "tar.zst", "zip"]
SUFFIXES: dict[str, ArchiveFormat] = {".tar": "tar", ".tar.zst": "tar.zst", ".tzst": "tar.zst", ".zip": "zip"}
MODE = 0o644
ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)
"""Archives carry no times: a clock would give equal versions different archives."""
ZIP64_BYTES = 1 << 31


@dataclass(eq=False)
class TargetTakenError(PermanentError):
    """Something else lies where an export was to go."""

    target: str

    def __str__(self) -> str:
        return f"{self.target} exists and is something else; remove it, or export to another name."


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """A file that an export made."""

    path: str
    num_files: int
    num_bytes: int
    """Of the written file."""
    sha256: Digest


def archive_format(path: Path) -> ArchiveFormat | None:
    """Return the format a file name asks for, or None."""
    name = path.name.lower()
    return next((kind for suffix, kind in SUFFIXES.items() if name.endswith(suffix)), None)


def write_archive(store: ObjectStore, files: Iterable[Stored], target: Path, kind: ArchiveFormat) -> WrittenFile:
    """Write the files, in the order given, as an archive that appears complete and verified, or not at all.

    An archive of the same bytes that is there stays. Raises TargetTakenError, IntegrityError, LocalDiskError.
    """
    count = 0

    def counted() -> Iterator[tuple[Stored, Iterable[bytes]]]:
        nonlocal count
        for pair in contents(store, files):
            count += 1
            yield pair

    write = {"tar": _write_tar, "tar.zst": _write_tar_zst, "zip": _write_zip}[kind]
    digest, size = write_whole(target, lambda file: write(file, counted()))
    return WrittenFile(str(target), count, size, digest)


def write_whole(target: Path, write: Callable[[IO[bytes]], None]) -> tuple[Digest, int]:
    """Let ``write`` fill a new file that takes its name when it is complete; return its SHA-256 and size.

    Equal bytes that are there stay. Raises TargetTakenError, LocalDiskError.
    """
    with part_file(target) as part:
        with part.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        digest, size = hash_file(part)
        if not _linked(part, target) and (not target.is_file() or hash_file(target)[0] != digest):
            raise TargetTakenError(str(target))
    return digest, size


def _linked(part: Path, target: Path) -> bool:
    """Give the finished file its name unless that is taken; return whether it was free."""
    try:
        target.hardlink_to(part)  # unlike a rename, it does not replace
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS) or target.exists():
            raise
        part.rename(target)  # a file system without links
    return True


@contextmanager
def part_file(target: Path) -> Iterator[Path]:
    """Give the path of an unfinished file beside the target, removed afterwards. Raises LocalDiskError."""
    part = target.parent / f".{secrets.token_hex(8)}.part"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield part
    except OSError as error:
        raise local_error(target, error) from error
    finally:
        part.unlink(missing_ok=True)


class _Chunks(io.RawIOBase):
    """Chunks as a file that ``tarfile`` can read."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._left = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        while not self._left:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._left = memoryview(chunk)
        target = memoryview(buffer).cast("B")
        size = min(len(target), len(self._left))
        target[:size] = self._left[:size]
        self._left = self._left[size:]
        return size


def _write_tar(target: IO[bytes], files: Iterable[tuple[Stored, Iterable[bytes]]]) -> None:
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for file, chunks in files:
            member = tarfile.TarInfo(file.entry.path)
            member.size, member.mode, member.mtime = file.entry.size, MODE, 0
            source = io.BufferedReader(_Chunks(chunks))
            archive.addfile(member, source)
            source.read(1)  # reads past the end: there a large file says whether it was verified
            archive.members.clear()  # type: ignore[attr-defined]  # or every member of a large archive stays in memory


def _write_tar_zst(target: IO[bytes], files: Iterable[tuple[Stored, Iterable[bytes]]]) -> None:
    import zstandard

    with zstandard.ZstdCompressor(level=3).stream_writer(target, closefd=False) as compressed:
        _write_tar(cast("IO[bytes]", compressed), files)


def _write_zip(target: IO[bytes], files: Iterable[tuple[Stored, Iterable[bytes]]]) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for file, chunks in files:
            member = zipfile.ZipInfo(file.entry.path, ZIP_EPOCH)
            member.compress_type, member.create_system, member.external_attr = zipfile.ZIP_DEFLATED, 3, MODE << 16
            with archive.open(member, "w", force_zip64=file.entry.size >= ZIP64_BYTES) as written:
                for chunk in chunks:
                    written.write(chunk)
