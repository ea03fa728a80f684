"""Files that grow frame by frame and may end anywhere: a reader takes what is whole, a killed writer leaves it."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import BinaryIO

HEAD = b"deepseek-ops stat cache/3\n"
_FRAME = struct.Struct("<I32s")


class Journal:
    """A file of frames that grows. Once the disk takes no more, or is not ours, nothing is written any more."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = Lock()
        self._handle = -1
        self._broken = False

    @property
    def begun(self) -> bool:
        return self._handle >= 0

    def append(
        self, body: Callable[[], bytes] | None, *, beginning: Callable[[], Iterable[bytes]] = lambda: ()
    ) -> None:
        """Add a frame, if there is one, behind what the file begins with."""
        with self._lock:
            if self._broken:
                return
            try:
                if self._handle < 0:
                    self.path.parent.mkdir(exist_ok=True)
                    self._handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
                    for data in [HEAD, *beginning()]:
                        _write(self._handle, data)
                if body is not None:
                    frame = body()
                    _write(self._handle, framed(frame))
            except OSError:
                self._broken = True

    def replace(self, target: Path) -> bool:
        """Give the file another name if all of it is there, and return whether it has it."""
        with suppress(OSError):
            if not self._broken:
                self.path.replace(target)
                return True
        return False

    def close(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)


def framed(body: bytes) -> bytes:
    """Return a body as it is written: behind its length and its digest."""
    return _FRAME.pack(len(body), hashlib.sha256(body).digest()) + body


def frames(file: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Yield begin, end and body of each frame behind the head; what does not check ends it."""
    begin = file.tell()
    while len(head := file.read(_FRAME.size)) == _FRAME.size:
        length, digest = _FRAME.unpack(head)
        body = file.read(length)
        if hashlib.sha256(body).digest() != digest:
            return
        end = begin + _FRAME.size + length
        yield begin, end, body
        begin = end


def _write(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
