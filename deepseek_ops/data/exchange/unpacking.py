"""Archives from elsewhere, read member by member: what is not a plain file of a plain name is refused.

Nothing is ever extracted to a path the archive names. Members go straight into the store under their own digests;
their names become paths of a version only after ``PathGate`` let them in, and the version appears only when the last
member was read. Bounds on count, size and ratio end a bomb before it fills the disk.
"""

from __future__ import annotations

import bz2
import gzip
import io
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Protocol, cast

from deepseek_ops.core.errors import PermanentError
from deepseek_ops.data.exchange.intake import Arriving
from deepseek_ops.data.exchange.paths import PathGate, RefusedMemberError
from deepseek_ops.data.folders import local_error

CHUNK_BYTES = 1 << 20
"""Also the most that is read at once: a tar header that says its name has 4 GB asks for more."""
RATIO_FLOOR = 64 << 20
"""So many bytes come out of any archive before its ratio counts."""
ZSTD_WINDOW_BYTES = 128 << 20
_BLOCK = 512
SplitOfName = Callable[[str], str]


@dataclass(frozen=True, slots=True)
class Limits:
    """What an archive may become."""

    max_files: int = 20_000_000
    max_bytes: int = 100 << 40
    max_ratio: float = 200.0
    """Bytes that come out for each byte of the archive."""


@dataclass(eq=False)
class UnreadableArchiveError(PermanentError):
    """A file that is no archive we read, is damaged, or is built to do harm."""

    source: str
    problem: str

    def __str__(self) -> str:
        return f"{self.source} {self.problem}; nothing was imported."


class _Bytes(Protocol):
    def read(self, size: int, /) -> bytes: ...


class _Counted:
    """Counts what is read of the archive's own bytes."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.count = 0

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        self.count += len(data)
        return data


class _Forward:
    """What ``tarfile`` reads from: goes forward only, in small steps, and keeps count.

    Raises UnreadableArchiveError for more bytes than the limits allow, and for one read of more than a chunk: only a
    header that lies about itself asks for that.
    """

    def __init__(self, source: str, plain: _Bytes, consumed: _Counted, limits: Limits) -> None:
        self._source, self._plain, self._consumed, self._limits = source, plain, consumed, limits
        self._at = 0
        self._kept = b""

    def tell(self) -> int:
        return self._at

    def seek(self, position: int) -> int:
        if position < self._at - len(self._kept):
            raise UnreadableArchiveError(self._source, "has members that point backwards")
        if position < self._at:
            self._rewind(self._at - position)
        while self._at < position:
            if not self.read(min(CHUNK_BYTES, position - self._at)):
                break
        return self._at

    def _rewind(self, count: int) -> None:
        self._again = self._kept[-count:]
        self._at -= count
        self._kept = self._kept[:-count]

    _again = b""

    def read(self, size: int) -> bytes:
        if not 0 <= size <= CHUNK_BYTES:
            raise UnreadableArchiveError(
                self._source, f"has a header of {size} bytes at {self._at}, where a name has a kilobyte"
            )
        data, self._again = self._again[:size], self._again[size:]
        while len(data) < size:
            more = self._plain.read(size - len(data))
            if not more:
                break
            data += more
        self._at += len(data)
        self._kept = (self._kept + data)[-2 * _BLOCK :]
        limits = self._limits
        if self._at > limits.max_bytes:
            raise UnreadableArchiveError(self._source, f"unpacks to more than {limits.max_bytes} bytes")
        if self._at > RATIO_FLOOR and self._at > limits.max_ratio * max(self._consumed.count, 1):
            raise UnreadableArchiveError(
                self._source, f"unpacks to {self._at} bytes from {self._consumed.count}: it is built to fill a disk"
            )
        return data

    @property
    def ends_with_zeros(self) -> bool:
        return self._kept[-_BLOCK:] == bytes(_BLOCK)


def archive_members(
    path: Path, *, limits: Limits, case_sensitive: bool = False, split_of: SplitOfName = lambda _path: ""
) -> Iterator[Arriving]:
    """Yield the files of a .tar, .tar.gz, .tar.zst, .tar.bz2 or .zip; each must be read before the next is asked for.

    What it is, its first bytes say, not its name. Raises RefusedMemberError for a member that is a link or a device or
    has a name that no version may hold, UnreadableArchiveError for damage and bombs, while it is read.
    """
    gate = PathGate(path.name, case_sensitive=case_sensitive)
    try:
        with path.open("rb") as file:
            begin = file.read(4)
            file.seek(0)
            if begin in (b"PK\x03\x04", b"PK\x05\x06"):
                members = _zip_members(file, path.name, gate, limits)
            else:
                members = _tar_members(file, begin, path.name, gate, limits)
            for number, (name, read) in enumerate(members, start=1):
                if number > limits.max_files:
                    raise UnreadableArchiveError(path.name, f"has more than {limits.max_files} members")
                yield Arriving(name, read, split_of(name))
    except OSError as error:
        raise local_error(path, error) from error


Member = tuple[str, Callable[[], Iterator[bytes]]]


@contextmanager
def _damage(source: str) -> Iterator[None]:
    """Turn what the readers raise for damaged or hostile bytes into one error of ours."""
    try:
        yield
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, gzip.BadGzipFile) as error:
        raise UnreadableArchiveError(source, f"is damaged ({error})") from error
    except (ValueError, NotImplementedError, RecursionError, OverflowError, RuntimeError) as error:
        raise UnreadableArchiveError(source, f"cannot be read ({type(error).__name__}: {error})") from error


def _plain(file: _Counted, begin: bytes) -> _Bytes:
    if begin == b"\x28\xb5\x2f\xfd":
        import zstandard

        decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES)
        return decompressor.stream_reader(cast("IO[bytes]", file), read_across_frames=True)
    if begin[:2] == b"\x1f\x8b":
        return gzip.GzipFile(fileobj=cast("IO[bytes]", file), mode="rb")
    if begin[:3] == b"BZh":
        return bz2.BZ2File(cast("IO[bytes]", file), "rb")
    return file


def _tar_members(file: IO[bytes], begin: bytes, source: str, gate: PathGate, limits: Limits) -> Iterator[Member]:
    consumed = _Counted(file)
    forward = _Forward(source, _plain(consumed, begin), consumed, limits)
    with _damage(source):
        archive = tarfile.open(fileobj=cast("IO[bytes]", forward), mode="r:")  # noqa: SIM115  (nothing to close)
    while True:
        with _damage(source):
            member = archive.next()
        if member is None:
            break
        archive.members.clear()  # type: ignore[attr-defined]  # or every member of a large archive stays in memory
        if member.isdir():
            if member.name.strip("./"):
                gate.plain(member.name)
            continue
        yield _tar_path(member, gate, source), partial(_tar_content, archive, member, source)
    if not forward.ends_with_zeros:
        raise UnreadableArchiveError(source, "ends early: it was cut, or is no archive")


def _tar_path(member: tarfile.TarInfo, gate: PathGate, source: str) -> str:
    kinds = (
        (member.issym(), "is a symbolic link"),
        (member.islnk(), "is a hard link"),
        (member.isdev(), "is a device or a pipe"),
        (member.issparse(), "is a sparse file"),
        (not member.isreg(), "is no plain file"),
        (member.size < 0, "has a negative size"),
    )
    for wrong, problem in kinds:
        if wrong:
            raise RefusedMemberError(source, member.name, problem)
    return gate.admit(member.name)


def _tar_content(archive: tarfile.TarFile, member: tarfile.TarInfo, source: str) -> Iterator[bytes]:
    left = member.size
    with _damage(source):
        reader = archive.extractfile(member)
    while left and reader is not None:
        with _damage(source):
            data = reader.read(min(CHUNK_BYTES, left))
        if not data:
            raise UnreadableArchiveError(source, f"ends within {member.name!r}")
        left -= len(data)
        yield data


def _zip_members(file: IO[bytes], source: str, gate: PathGate, limits: Limits) -> Iterator[Member]:
    with _damage(source):
        archive = zipfile.ZipFile(file)
    infos = archive.infolist()
    _check_zip(infos, source, limits, size=file.seek(0, io.SEEK_END))
    for info in infos:
        if info.is_dir():
            gate.plain(info.orig_filename.rstrip("/"))
            continue
        yield _zip_path(info, gate, source), partial(_zip_content, archive, info, source)


def _check_zip(infos: list[zipfile.ZipInfo], source: str, limits: Limits, *, size: int) -> None:
    total = sum(info.file_size for info in infos)
    if total > limits.max_bytes or (total > RATIO_FLOOR and total > limits.max_ratio * size):
        raise UnreadableArchiveError(source, f"unpacks to {total} bytes from {size}: it is built to fill a disk")
    end, last = 0, ""
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise RefusedMemberError(source, info.orig_filename, f"overlaps {last!r}")
        end, last = info.header_offset + 30 + info.compress_size, info.orig_filename


def _zip_path(info: zipfile.ZipInfo, gate: PathGate, source: str) -> str:
    kind = stat.S_IFMT(info.external_attr >> 16) if info.create_system == 3 else 0
    if kind not in (0, stat.S_IFREG):
        problem = "is a symbolic link" if kind == stat.S_IFLNK else "is no plain file"
        raise RefusedMemberError(source, info.orig_filename, problem)
    if info.flag_bits & 0x1:
        raise RefusedMemberError(source, info.orig_filename, "is encrypted")
    return gate.admit(info.orig_filename)  # `filename` ends at a NUL, which hides what follows


def _zip_content(archive: zipfile.ZipFile, info: zipfile.ZipInfo, source: str) -> Iterator[bytes]:
    size = 0
    with _damage(source):
        reader = archive.open(info)
    with reader:
        while True:
            with _damage(source):
                data = reader.read(CHUNK_BYTES)
            if not data:
                break
            size += len(data)
            yield data
    if size != info.file_size:
        raise UnreadableArchiveError(source, f"has {size} bytes of {info.file_size} in {info.orig_filename!r}")
