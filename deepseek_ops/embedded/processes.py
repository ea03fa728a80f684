"""Server processes that end with their owner: no orphan, whatever kills whom.

A server is started through a small guard process (``python -m deepseek_ops.embedded.guard``). The guard is a child
subreaper, so everything the server starts, detached daemons included, stays below it in the process tree, and it ends
the whole tree when it is told to, when the server ends, or when its owner's end of a pipe closes (which the kernel
does even for SIGKILL). A *kept* server has no such pipe and is ended by ``end_recorded`` through its record.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepseek_ops.core.errors import TransientError


@dataclass(eq=False)
class ServerStartError(TransientError):
    """A server of ours did not come up."""

    server: str
    problem: str
    log: str

    def __str__(self) -> str:
        return f"{self.server} did not start: {self.problem} (log: {self.log})"


def free_port() -> int:
    """Return a TCP port of the loopback interface that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int) -> bool:
    """Return whether nothing listens on the loopback port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


def start_time(pid: int) -> int | None:
    """Return the kernel's start tick of a process: with the pid it names one process for ever. None when gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


class GuardedProcess:
    """One server under a guard.

    Args:
        name: Shown in errors; also the name of the record file.
        argv: Command of the server.
        folder: Where ``<name>.log`` and ``<name>.process.json`` go.
        environment: The server's whole environment.
        keep: Leave the server up when the owner ends; ``end_recorded`` ends it.
        grace_seconds: Between SIGTERM and SIGKILL.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        folder: Path,
        environment: Mapping[str, str],
        keep: bool = False,
        grace_seconds: float = 15.0,
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.record = folder / f"{name}.process.json"
        self._argv = list(argv)
        self._environment = dict(environment)
        self._keep = keep
        self._grace = grace_seconds
        self._guard: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server; its output is appended to the log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        options = ["--grace", str(self._grace), *(["--keep"] if self._keep else [])]
        guard = [sys.executable, "-m", "deepseek_ops.embedded.guard", *options, "--"]
        with self.log.open("ab") as log:
            self._guard = subprocess.Popen(
                [*guard, *self._argv],
                stdin=subprocess.DEVNULL if self._keep else subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        pid = self._guard.pid
        temporary = self.record.with_suffix(".tmp")
        temporary.write_text(json.dumps({"pid": pid, "start": start_time(pid), "name": self.name}))
        temporary.replace(self.record)

    @property
    def running(self) -> bool:
        return self._guard is not None and self._guard.poll() is None

    def require_running(self) -> None:
        """Raise ServerStartError with the end of the log when the server has ended."""
        if not self.running:
            lines = self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []
            raise ServerStartError(self.name, lines[-1][:300] if lines else "it ended at once", str(self.log))

    def stop(self, timeout: float = 30.0) -> None:
        """End the server and everything below it; returns when all of it is gone."""
        if self._guard is None:
            return
        with contextlib.suppress(ProcessLookupError):
            self._guard.terminate()
        try:
            self._guard.wait(timeout)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        self.record.unlink(missing_ok=True)
        self._guard = None


def end_recorded(folder: Path, timeout: float = 30.0) -> list[str]:
    """End every kept server that has a record in ``folder`` and return their names.

    A record whose pid now belongs to another process (start time differs) is only removed.
    """
    ended = []
    for record in sorted(folder.glob("*.process.json")):
        entry = json.loads(record.read_text())
        pid = int(entry["pid"])
        if entry["start"] is not None and start_time(pid) == entry["start"]:
            os.kill(pid, signal.SIGTERM)
            deadline = time.monotonic() + timeout
            while start_time(pid) == entry["start"] and time.monotonic() < deadline:
                time.sleep(0.1)
            if start_time(pid) == entry["start"]:
                os.kill(pid, signal.SIGKILL)
            ended.append(str(entry["name"]))
        record.unlink(missing_ok=True)
    return ended
