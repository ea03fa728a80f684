"""One growing file of a job's folder, sent to a stream of the job in the store."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path

from deepseek_ops.adapters.remote_launcher.shared_log import MAX_PIECE_BYTES, SharedLog, cut

PIECES_A_TURN = 16
"""4 MiB at once: a log that a store's outage has dammed up must not keep a stop from being seen."""
SLOWEST_SECONDS = 10.0
SLOW_DOWN = 100.0
_LIFE_CYCLE = frozenset({"started", "stopping", "ended"})


class StreamUpload:
    """Sends what is new in ``file``, in pieces of whole lines, and remembers in ``cursor`` how far it came.

    The file outlives the process that sends it: the next attempt on the same machine goes on where this one was cut
    off. A process that is killed between a piece and the note of it sends that piece again.
    """

    def __init__(self, file: Path, cursor: Path, stream: SharedLog, *, lines: bool, node: int, label: str) -> None:
        self._file = file
        self._cursor = cursor
        self._stream = stream
        self._lines = lines
        self._node = node
        self._label = label.encode()
        self._sent = self._noted()
        self._began = self._last = time.monotonic()

    def turn(self, pace_seconds: float, *, last: bool = False) -> bool:
        """Send what is new, unless it is too early for that; return whether nothing is left to send.

        A young job is followed closely; the older it gets the rarer are its pieces, since each is an object.
        """
        now = time.monotonic()
        pace = min(SLOWEST_SECONDS, max(pace_seconds, (now - self._began) / SLOW_DOWN))
        if not last and now - self._last < pace:
            return True
        self._last = now
        for _ in range(PIECES_A_TURN):
            data = self._read()
            piece = cut(data, lines=self._lines, last=last)
            if not piece:
                return True
            self._stream.append(self._told(piece))
            self._sent += len(piece)
            self._note()
        return len(self._read()) == 0

    def _read(self) -> bytes:
        try:
            with self._file.open("rb") as file:
                file.seek(self._sent)
                return file.read(MAX_PIECE_BYTES // 2)  # the label of each line needs room too
        except FileNotFoundError:
            return b""

    def _told(self, piece: bytes) -> bytes:
        """Return the piece as others are to read it: from which node, where it is not the first one."""
        if self._lines:
            return b"".join(self._event(line) for line in piece.splitlines(keepends=True)) if self._node else piece
        if not self._label:
            return piece
        ending = b"" if piece.endswith(b"\n") else b"\n"
        return b"".join(self._label + line for line in piece.splitlines(keepends=True)) + ending

    def _event(self, line: bytes) -> bytes:
        try:
            body = json.loads(line)
        except ValueError:
            return line  # for the reader to call damaged
        kind = body.get("kind")
        if kind in _LIFE_CYCLE:  # of this node; the job's own are those of node 0
            body["kind"] = f"node_{kind}"
        return json.dumps({**body, "node": self._node}, ensure_ascii=False).encode() + b"\n"

    def _noted(self) -> int:
        with contextlib.suppress(FileNotFoundError, ValueError):
            size = self._file.stat().st_size
            return min(int(self._cursor.read_text()), size)
        return 0

    def _note(self) -> None:
        part = self._cursor.with_name(f".{self._cursor.name}.{os.getpid()}")
        part.write_text(str(self._sent))
        part.replace(self._cursor)
