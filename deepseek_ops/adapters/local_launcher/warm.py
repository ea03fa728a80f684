"""The launcher's side of the warm host: find it or start it, and have it fork a supervisor.

A host serves one root, one interpreter, one version of our code and one set of the variables that libraries read when
they are imported; its folder's name is a digest of these. So a job never runs on imports that were made for another.
What a request carries, secrets included, goes over a Unix socket in a folder that only this user may enter, and the
kernel says on both sides who the other is. Nothing of it is written down.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from pydantic import Field

from deepseek_ops.adapters.local_launcher import processes
from deepseek_ops.adapters.local_launcher.errors import JobFolderError
from deepseek_ops.adapters.local_launcher.folder import JobFolder, disk
from deepseek_ops.core.records import Record, canonical_json, digest_of

FORK_TIMEOUT_SECONDS = 180.0
"""How long a request waits for a host that is still importing before the job starts cold: 20 CPU-seconds of imports
on a machine that is busy."""
MAX_REQUEST_BYTES = 4 << 20
_READ_AT_IMPORT = (
    *("HF_", "TRANSFORMERS_", "DS_", "TORCH", "PYTORCH", "CUDA_", "NVIDIA_", "MKL_", "OPENBLAS_", "LD_"),
    "DEEPSEEK_OPS_PRELOAD",
)
_LOADED_BY_HOST = (
    *("core/*.py", "adapters/local_launcher/*.py", "jobs/__main__.py", "jobs/context.py", "jobs/ending.py"),
    *("jobs/entry.py", "jobs/environment.py", "jobs/host.py", "jobs/preload.py", "jobs/progress.py"),
    "jobs/supervise.py",
)
"""Ours that a host has imported. The code of the kinds is imported after the fork and may change under a host."""


class HostProcess(Record):
    """The process of a host."""

    pid: int = Field(gt=0)
    start_ticks: int = Field(ge=0)


@dataclass(frozen=True, slots=True)
class WarmHost:
    """The warm host that suits jobs with this interpreter and environment, running or not."""

    folder: Path
    python: str
    environment: Mapping[str, str]
    """What it is started with: the environment of its jobs without their secrets."""

    @classmethod
    def of(cls, root: Path, python: str, environment: Mapping[str, str]) -> WarmHost:
        """Return the host below ``root`` for these."""
        at_import = {name: value for name, value in environment.items() if name.startswith(_READ_AT_IMPORT)}
        # One environment's interpreter has several names (python, python3.11); the folder tells environments apart.
        interpreter = [str(Path(python).parent), str(Path(python).resolve())]
        key = digest_of(canonical_json([*interpreter, _code(), dict(at_import)]))[:16]
        return cls(root / "host" / key, python, environment)

    @property
    def ready(self) -> bool:
        """Whether it runs and has imported what it keeps warm."""
        return (self.folder / "ready").exists() and self._process() is not None

    def start(self) -> None:
        """Start the host unless it runs; returns when it listens, before its imports are done.

        Raises JobFolderError. A host that cannot start is no error: the jobs start cold.
        """
        if self._process() is not None:
            return
        with disk(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._require_private()
        with (self.folder / "log.txt").open("ab") as log, contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(
                [self.python, "-m", "deepseek_ops.jobs", "host", str(self.folder)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self.environment),
                start_new_session=True,
                timeout=30,
                check=False,
            )

    def fork(self, files: JobFolder, environment: Mapping[str, str], lock: int) -> str:
        """Have the host fork the supervisor of a job's newest attempt; return "" or why it did not.

        Waits for a host that is still importing. ``lock`` is the job's lock: it goes to the supervisor.
        """
        request = json.dumps({"folder": str(files.path), "environment": dict(environment)}).encode()
        try:
            self._require_private()
            with self._connected() as connection:
                connection.settimeout(FORK_TIMEOUT_SECONDS)
                socket.send_fds(connection, [struct.pack("!I", len(request))], [lock])
                connection.sendall(request)
                answer = connection.makefile("rb").readline()
        except (OSError, JobFolderError) as error:
            return f"the warm host cannot be reached: {error}"
        return answer.decode().strip() if answer != b"started\n" else "" if answer else "the warm host ended"

    def stop(self) -> None:
        """End the host, if it runs. Its jobs go on."""
        process = self._process()
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + 5
        while self._process() is not None and time.monotonic() < deadline:
            time.sleep(0.02)

    def _process(self) -> HostProcess | None:
        known = JobFolder(self.folder).read("host.json", HostProcess)
        return known if known is not None and processes.is_alive(known.pid, known.start_ticks) else None

    def _require_private(self) -> None:
        found = self.folder.stat()
        if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
            raise JobFolderError(str(self.folder), "it must belong to this user and be closed to others (0700)")

    @contextlib.contextmanager
    def _connected(self) -> Iterator[socket.socket]:
        with socket.socket(socket.AF_UNIX) as connection, short_path(self.folder) as folder:
            connection.connect(f"{folder}/socket")
            if peer_user(connection) != os.geteuid():
                raise JobFolderError(str(self.folder), "another user listens there")
            yield connection


def hosts_below(root: Path) -> list[WarmHost]:
    """Return the hosts of a root, whatever they were started for."""
    folder = root / "host"
    return [WarmHost(entry, "", {}) for entry in sorted(folder.iterdir())] if folder.is_dir() else []


@contextlib.contextmanager
def short_path(folder: Path) -> Iterator[str]:
    """Give a path to the folder that fits into a socket's address, which holds 107 bytes."""
    opened = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{opened}"
    finally:
        os.close(opened)


def peer_user(connection: socket.socket) -> int:
    """Return the user id of the process at the other end, as the kernel knows it."""
    _, user, _ = struct.unpack(
        "3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    )
    return int(user)


@cache
def _code() -> str:
    """Return a digest of our code that a host has loaded: a newer version asks for a newer host."""
    package = Path(__file__).parents[2]
    files = sorted(path for pattern in _LOADED_BY_HOST for path in package.glob(pattern))
    return digest_of(canonical_json([[str(path), path.stat().st_mtime_ns, path.stat().st_size] for path in files]))
