"""Where every rank is, in its own code's words: stack dumps taken from outside, of processes that answer no more.

py-spy reads the interpreter's memory, so it needs nothing from a rank that hangs. The kernel allows that for processes
of the same user unless a container or Yama forbids it; Yama is told to let the rank's own tree do it. Where it is
forbidden all the same, or py-spy is not installed, the rank dumps itself: ``faulthandler`` writes on a signal, in C,
without the interpreter's lock. Local variables are never read: they may hold data and secrets.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DUMP_SECONDS = 10.0
"""How long all dumps together may take."""
ANSWER_SECONDS = 2.0
"""How long a rank has to dump itself."""
MAX_FRAMES = 40
"""Frames of a stack that go into an event, the innermost first."""
MAX_BYTES = 256 << 10
"""Of a rank's dump in its file."""
STACK_SIGNAL = signal.SIGRTMIN + 9
"""A real-time signal: USR1 and USR2 belong to Slurm and to the job's own code."""
_PR_SET_PTRACER = 0x59616D61
_WAITING = (f"torch{os.sep}distributed", "torch/distributed", "deepspeed/comm")
"""Where a rank is that waits for its peers."""


@dataclass(frozen=True, slots=True)
class Stack:
    """The stacks of one process."""

    source: str
    """py-spy or faulthandler; empty when neither got one."""
    frames: tuple[str, ...]
    """``function (file:line)`` of the main thread, the innermost first."""
    text: str
    """All threads, or why there is none."""

    @property
    def waits_for_peers(self) -> bool:
        """Whether the main thread is in a collective: then it is another rank's turn."""
        return any(part in frame for frame in self.frames[:8] for part in _WAITING)


class StackSlot:
    """Where a rank dumps itself when it is told to: memory, so that a full disk cannot swallow it."""

    def __init__(self) -> None:
        self._memory = os.memfd_create("stacks", os.MFD_CLOEXEC)

    def arm(self, watcher: int) -> None:
        """Make this process, a rank, readable for ``watcher`` and its children, and ready to dump itself."""
        with contextlib.suppress(OSError, AttributeError):  # a kernel without Yama forbids nothing
            ctypes.CDLL(None).prctl(_PR_SET_PTRACER, watcher, 0, 0, 0)
        faulthandler.register(STACK_SIGNAL, file=self._memory, all_threads=True)

    def read(self) -> str:
        """Return what the rank has dumped so far."""
        size = min(os.fstat(self._memory).st_size, MAX_BYTES)
        return os.pread(self._memory, size, 0).decode(errors="replace")

    def close(self) -> None:
        """Give the memory back."""
        os.close(self._memory)


def dump_stacks(processes: Mapping[int, tuple[int, StackSlot]]) -> dict[int, Stack]:
    """Return the stack of every rank of ``processes`` (rank -> process id and slot), within ``DUMP_SECONDS``."""
    found = _spied({rank: pid for rank, (pid, _) in processes.items()})
    missing = {rank: processes[rank] for rank, stack in found.items() if not stack.source}
    for pid, _ in missing.values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, STACK_SIGNAL)
    deadline = time.monotonic() + ANSWER_SECONDS
    for rank, (_, slot) in missing.items():
        text, before = slot.read(), None
        while (not text or text != before) and time.monotonic() < deadline:  # it comes in many small writes
            time.sleep(0.05)
            text, before = slot.read(), text
        if text:
            found[rank] = Stack("faulthandler", _own_frames(text), text)
    return found


def _spied(pids: Mapping[int, int]) -> dict[int, Stack]:
    """Return what py-spy says of every process; all are asked at once."""
    program = spy_program()
    if program is None:
        return {rank: Stack("", (), "py-spy is not installed") for rank in pids}
    started = {rank: _spy(program, pid) for rank, pid in pids.items()}
    deadline = time.monotonic() + DUMP_SECONDS
    return {rank: _answer(spy, deadline) for rank, spy in started.items()}


def _spy(program: str, pid: int) -> subprocess.Popen[bytes]:
    # Without a pause: a process that sleeps in the kernel can never be paused, and the others stand still anyway.
    command = [program, "dump", "--pid", str(pid), "--nonblocking", "--json", "--full-filenames"]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def _answer(spy: subprocess.Popen[bytes], deadline: float) -> Stack:
    try:
        said, problem = spy.communicate(timeout=max(0.1, deadline - time.monotonic()))
        threads = json.loads(said) if spy.returncode == 0 else []
    except (subprocess.TimeoutExpired, ValueError):
        spy.kill()
        spy.communicate()
        return Stack("", (), "py-spy gave no answer")
    if not threads:
        return Stack("", (), problem.decode(errors="replace").strip()[:500])
    main = next((thread for thread in threads if thread["os_thread_id"] == thread["pid"]), threads[0])
    text = "\n\n".join(_told(thread) for thread in (main, *(other for other in threads if other is not main)))
    return Stack("py-spy", _frames(main), text[:MAX_BYTES])


def _told(thread: dict[str, object]) -> str:
    head = f"thread {thread['os_thread_id']} {thread['thread_name']} ({'runs' if thread['active'] else 'waits'})"
    return "\n".join([head, *(f"    {frame}" for frame in _frames(thread))])


def _frames(thread: dict[str, object]) -> tuple[str, ...]:
    frames = thread["frames"]
    known = frames if isinstance(frames, list) else []
    return tuple(f"{frame['name']} ({frame['filename']}:{frame['line']})" for frame in known)


def _own_frames(text: str) -> tuple[str, ...]:
    """Return the frames of a faulthandler dump's last thread: it lists the main thread last."""
    last = text.rstrip().rpartition("\n\n")[2]
    parts = [line.strip().removeprefix("File ").rpartition(", line ") for line in last.splitlines() if "File " in line]
    frames = []
    for file, _, rest in parts:
        line, _, name = rest.partition(" in ")
        path = file.strip('"')
        frames.append(f"{name} ({path}:{line})")
    return tuple(frames)


def spy_program() -> str | None:
    """Return the path of py-spy beside this interpreter or on the PATH, None where it is not installed."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy")
