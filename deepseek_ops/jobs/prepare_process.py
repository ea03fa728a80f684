"""Running the callable of a model repository in a process of its own, watched from outside.

The process confines itself before foreign code is imported (``prepare_sandbox``). From outside come what it cannot do
to itself: variables without secrets, no inherited file, and a watch over the memory of all its processes together.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from deepseek_ops.core.errors import JobStoppedError, PermanentError, TransientError
from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.prepare_child import Order

_PASSED_ON = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TZ", "SYSTEMROOT")
"""Variables that the child gets from us. Everything else, keys and endpoints above all, stays behind."""
_LOG_LINES = 20
_POLL_SECONDS = 0.1
_MEMORY_POLL_SECONDS = 1.0


@dataclass(eq=False)
class PrepareFailedError(PermanentError):
    """The model repository's callable raised, or broke its contract."""

    target: str
    status: int
    log: str

    def __str__(self) -> str:
        return f"{self.target} ended with status {self.status}{self._hint()}; its last lines:\n{self.log}"

    def _hint(self) -> str:
        if "MemoryError" in self.log or "Cannot allocate memory" in self.log:
            return " (out of memory: read the input in parts, or raise data.limits.memory)"
        if -self.status == signal.SIGXCPU:
            return " (out of CPU time: raise data.limits.cpu)"
        return ""


@dataclass(eq=False)
class PrepareMemoryError(PermanentError):
    """The callable's processes together passed their memory."""

    target: str
    used: int
    limit: int

    def __str__(self) -> str:
        return (
            f"{self.target} and its processes use {self.used >> 20} MiB, {self.limit >> 20} MiB are allowed; "
            "read the input in parts, or raise data.limits.memory."
        )


@dataclass(eq=False)
class PrepareKilledError(TransientError):
    """The callable's process was killed: out of memory, or by the machine."""

    target: str
    signal_name: str

    def __str__(self) -> str:
        return f"{self.target} was killed by {self.signal_name}; give the job more memory, or read its input in parts."


def call(context: JobContext, order: Order) -> None:
    """Run the callable with ``order['scratch']`` as its working directory; return when it has ended well.

    Raises PrepareFailedError, PrepareMemoryError, PrepareKilledError, JobStoppedError.
    """
    scratch, target = Path(order["scratch"]), order["target"]
    scratch.mkdir(parents=True)
    log = context.work / "prepare.log"
    with log.open("wb") as output:
        child = subprocess.Popen(
            [sys.executable, "-B", "-m", "deepseek_ops.jobs.prepare_child", json.dumps(order, sort_keys=True)],
            cwd=scratch,
            env=_environment(Path(order["code"]), scratch),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = _wait(context, child, order)
        finally:
            _kill(child)
    with log.open(encoding="utf-8", errors="replace") as lines:
        tail = _forward(lines)
    if status == 0:
        return
    if status < 0 and -status != signal.SIGXCPU:
        raise PrepareKilledError(target, signal.Signals(-status).name)
    raise PrepareFailedError(target, status, tail)


def _environment(code: Path, scratch: Path) -> dict[str, str]:
    """Return the child's variables: none of ours that could hold a secret; hashes and threads fixed."""
    passed = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {
        **passed,
        "HOME": str(scratch),
        "TMPDIR": str(scratch),
        "PYTHONPATH": str(code),
        "PYTHONHASHSEED": "0",
        "PYTHONNOUSERSITE": "1",
        "PYTHONUTF8": "1",
        "TOKENIZERS_PARALLELISM": "true",
    }


def _wait(context: JobContext, child: subprocess.Popen[bytes], order: Order) -> int:
    deadline = time.monotonic() + context.spec.timeout_seconds
    limit, look = order["limits"].get("memory_bytes"), 0.0
    while (status := child.poll()) is None:
        if context.stop_requested:
            raise JobStoppedError(context.spec.name, context.stop_reason)
        if time.monotonic() > deadline:
            raise JobStoppedError(context.spec.name, f"prepare took more than {context.spec.timeout_seconds:.0f} s")
        if limit is not None and time.monotonic() >= look:
            look = time.monotonic() + _MEMORY_POLL_SECONDS
            if (used := memory_of_session(child.pid)) > limit:
                raise PrepareMemoryError(order["target"], used, limit)
        time.sleep(_POLL_SECONDS)
    return status


def memory_of_session(session: int) -> int:
    """Return the bytes of memory that the processes of a session use together, pages they share counted once."""
    return sum(_memory(path) for path in _members(session))


def _members(session: int) -> Iterator[Path]:
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError, ProcessLookupError):
                if os.getsid(int(path.name)) == session:
                    yield path


def _memory(process: Path) -> int:
    with contextlib.suppress(OSError, ProcessLookupError):
        for line in (process / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _kill(child: subprocess.Popen[bytes]) -> None:
    """End the child's whole process group: what it started may not outlive it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _forward(lines: IO[str]) -> str:
    """Copy the child's output into the job's log and return its last lines."""
    last: deque[str] = deque(maxlen=_LOG_LINES)
    for line in lines:
        sys.stdout.write(line)
        last.append(line)
    return "".join(last).strip()
