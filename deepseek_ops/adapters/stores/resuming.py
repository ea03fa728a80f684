"""Large downloads that go on where a killed process was.

``.<digest>.part`` beside the target holds the bytes, and behind them a map with one byte a part that is there. A byte
of the map is written after its part, so a kill leaves at most parts in flight to be fetched again. A power loss may
bring the map down without the part; so what a former process fetched is hashed before it is believed.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import struct
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from deepseek_ops.adapters.stores.disk import disk_error, reserve, write_at
from deepseek_ops.core.errors import LocalDiskError, PermanentError

if TYPE_CHECKING:
    from deepseek_ops.core.records import Digest

_HEADER = struct.Struct(">8sQQ")
_MAGIC = b"dsopart1"
_HASH_BYTES = 1 << 20


class ResumableFile:
    """The unfinished file of one digest in the folder of ``target``. One process holds it; ``held`` says whether.

    Leaving the block without ``commit`` keeps the file after a transient error and removes it after a permanent one.
    """

    def __init__(self, target: Path, digest: Digest, size: int, part_bytes: int) -> None:
        self._target = target
        self._path = target.parent / f".{digest}.part"
        self._digest = digest
        self._size = size
        self._part_bytes = part_bytes
        self._handle = -1
        self._resumed = False
        self.held = False

    def __enter__(self) -> Self:
        try:
            self._target.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            self.held = self._lock()
            if self.held:
                self._resumed = self._map_fits()
                if not self._resumed:
                    self.reset()
        except OSError as error:
            self._close()
            raise disk_error(self._target, error) from error
        except LocalDiskError:
            self._path.unlink(missing_ok=True)
            self._close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.held and isinstance(value, PermanentError):
            self._path.unlink(missing_ok=True)
        self._close()

    def _close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)  # and with it the lock
        self._handle = -1

    def _lock(self) -> bool:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return self._path.stat().st_ino == os.fstat(self._handle).st_ino  # else it was just finished
        except (BlockingIOError, FileNotFoundError):
            return False

    @property
    def _parts(self) -> int:
        return -(-self._size // self._part_bytes)

    @property
    def _header(self) -> bytes:
        return _HEADER.pack(_MAGIC, self._size, self._part_bytes)

    @property
    def _map_at(self) -> int:
        return self._size + _HEADER.size

    def _map_fits(self) -> bool:
        whole = os.fstat(self._handle).st_size == self._map_at + self._parts
        return whole and os.pread(self._handle, _HEADER.size, self._size) == self._header

    def reset(self) -> None:
        """Forget every part, and take the room for all."""
        os.ftruncate(self._handle, 0)
        reserve(self._handle, self._map_at + self._parts, self._target)
        write_at(self._handle, bytes(self._parts), self._map_at, self._target)
        write_at(self._handle, self._header, self._size, self._target)
        self._resumed = False

    def missing(self) -> list[int]:
        """Return where the parts begin that are not there yet."""
        present = os.pread(self._handle, self._parts, self._map_at)
        return [index * self._part_bytes for index, flag in enumerate(present) if not flag]

    def write_part(self, data: bytes, start: int) -> None:
        """Write one part, then its place in the map; threads may write different parts at once."""
        write_at(self._handle, data, start, self._target)
        write_at(self._handle, b"\1", self._map_at + start // self._part_bytes, self._target)

    def is_right(self) -> bool:
        """Return whether the bytes have their digest; only those that a former process began are read for it."""
        if not self._resumed:
            return True
        seen = hashlib.sha256()
        for start in range(0, self._size, _HASH_BYTES):
            seen.update(os.pread(self._handle, min(_HASH_BYTES, self._size - start), start))
        return seen.hexdigest() == self._digest

    def commit(self) -> None:
        """Give the file its name."""
        try:
            os.ftruncate(self._handle, self._size)
            self._path.replace(self._target)
        except OSError as error:
            raise disk_error(self._target, error) from error
