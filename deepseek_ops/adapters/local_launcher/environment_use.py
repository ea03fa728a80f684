"""Who uses an environment: a shared file lock that a process holds for as long as it lives, whatever ends it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator
from pathlib import Path

IN_USE = "in-use"
"""File in an environment's folder; its readers are the environment's users."""

_own: list[int] = []


def hold_own_environment() -> None:
    """Keep the environment that this interpreter belongs to until this process and all it has forked have ended.

    Does nothing in an interpreter that no cache made.
    """
    if not _own and (held := hold(Path(sys.prefix))) is not None:
        _own.append(held)


def hold(folder: Path) -> int | None:
    """Return the file descriptor that keeps the environment; None when it is no such folder or is being removed."""
    try:
        opened = os.open(folder / IN_USE, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    try:
        fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        return None
    return opened


@contextlib.contextmanager
def unused(folder: Path) -> Iterator[bool]:
    """Give whether nobody uses the environment; nobody can begin to before the block is left."""
    try:
        opened = os.open(folder / IN_USE, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield True
        return
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(opened)
