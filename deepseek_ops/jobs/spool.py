"""Rows on their way to the store, kept on this machine's disk until they are there.

A process that is killed leaves its rows to the one that takes its place: ``<name>.rows`` holds what was appended and
not sent yet, ``<name>.sent`` what was being sent, which the store may or may not have. A row is one line and one write
to a file opened for appending, so SIGKILL leaves whole lines; what a full disk cut off is dropped with its line.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

_log = logging.getLogger(__name__)


class Spool:
    """The two files of one stream. One process at a time writes them, under its own lock."""

    def __init__(self, folder: Path, name: str) -> None:
        self._open = folder / f"{name}.rows"
        self._sent = folder / f"{name}.sent"
        self._file: int | None = None
        self._broken = False

    def recover(self) -> tuple[list[bytes], list[bytes]]:
        """Return the lines that were being sent when the last writer ended, and those it had not begun to send."""
        return _lines(self._sent), _lines(self._open)

    def append(self, line: bytes) -> None:
        """Keep a line. A disk that refuses costs this protection and never the training; it is logged once."""
        if self._broken:
            return
        try:
            if self._file is None:
                self._open.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self._open, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            os.write(self._file, line + b"\n")
        except OSError as error:
            self._give_up(error)

    def seal(self) -> None:
        """Everything appended so far is being sent from now on."""
        self._close()
        try:
            if self._open.exists():
                self._open.replace(self._sent)
        except OSError as error:
            self._give_up(error)

    def sent(self) -> None:
        """What was sealed is in the store."""
        try:
            self._sent.unlink(missing_ok=True)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        known, self._broken = self._broken, True
        self._close()
        if not known:
            _log.warning(
                "%s: rows of a killed process would be lost from now on: %s", self._open, error.strerror or error
            )

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None


def _lines(path: Path) -> list[bytes]:
    try:
        whole, _, _cut = path.read_bytes().rpartition(b"\n")
    except OSError:
        return []
    return whole.split(b"\n") if whole else []
