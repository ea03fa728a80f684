"""Facts about processes that a job stands on: is it still the same one, does it die with its parent, who is left.

Linux only: everything here reads /proc or calls prctl. A process id alone proves nothing, because ids are used again;
id, start time, boot and process-id namespace together name one process.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Process:
    """One line of the process table. ``start_ticks`` counts clock ticks since boot."""

    pid: int
    parent: int
    session: int
    start_ticks: int
    zombie: bool


def process(pid: int) -> Process | None:
    """Return the process, or None when there is none of that id."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold spaces and brackets
    return Process(
        pid=pid, parent=int(fields[1]), session=int(fields[3]), start_ticks=int(fields[19]), zombie=fields[0] in "ZX"
    )


def is_alive(pid: int, start_ticks: int) -> bool:
    """Return whether the process that had this id and start time still runs; a zombie does not."""
    found = process(pid)
    return found is not None and not found.zombie and found.start_ticks == start_ticks


@cache
def machine() -> str:
    """Return where process ids mean something: this boot of this machine and this process-id namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"


def single_threaded() -> bool:
    """Return whether this process has one thread only, Python's and native ones alike: then it is safe to fork."""
    return len(os.listdir("/proc/self/task")) == 1  # noqa: PTH208  (called before every fork)


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when ``parent``, the process that forked it, ends for whatever reason."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the line above
        os._exit(1)


def become_subreaper() -> None:
    """Make orphans among our descendants our children, so that none can leave the tree by losing its parent."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def kill_descendants(*, timeout_seconds: float = 10.0) -> None:
    """Kill and reap every process below this one. Returns when none is left, or after the timeout (kernel waits)."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        _kill(_descendants(os.getpid()))
        for _ in reaped():
            pass
        if not _has_children():
            return
        time.sleep(0.01)


def reaped() -> Iterator[tuple[int, int]]:
    """Yield process id and wait status of every child that has ended, and take it off the process table."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            yield ended


def _has_children() -> bool:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def kill_session(session: int, start_ticks: int, *, marker: str, timeout_seconds: float = 10.0) -> None:
    """Kill what is left of the session that a process of this id and start time led; returns when nothing is.

    Programs that left the session are known by ``marker``, a ``NAME=value`` in the environment they were started with.

    The kernel does not give an id away while a session of that number has members. So a leader with another start
    time means that the old session is empty, and what carries the number now belongs to somebody else.
    """
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        leader = process(session)
        is_ours = leader is None or leader.start_ticks == start_ticks
        members = [
            found.pid
            for found in _processes()
            if found.start_ticks >= start_ticks
            and ((is_ours and found.session == session) or _was_started_with(found.pid, marker))
        ]
        if not members:
            return
        _kill(members)
        time.sleep(0.01)


def _was_started_with(pid: int, marker: str) -> bool:
    try:
        return marker.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it has ended, or belongs to somebody else
        return False


def _processes() -> Iterator[Process]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            found = process(int(entry.name))
            if found is not None and not found.zombie:
                yield found


def _descendants(root: int) -> list[int]:
    children: dict[int, list[int]] = {}
    for found in _processes():
        children.setdefault(found.parent, []).append(found.pid)
    below: list[int] = []
    queue = [root]
    while queue:
        next_ones = children.get(queue.pop(), [])
        below += next_ones
        queue += next_ones
    return below


def _kill(pids: Collection[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if _LIBC.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
