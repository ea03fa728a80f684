"""The warm host: a process that has made the heavy imports once and forks job supervisors on request.

Importing torch, transformers and deepspeed costs 15 to 20 CPU-seconds, more than many a job of a small model. A forked
process has them at once and shares their memory. Forking is sound only while the process has a single thread and has
not touched a GPU, so the host imports and does nothing else with what it imported, looks at its own threads before
each fork, and refuses (the job starts cold) when something is not as it must be.

It ends after ``IDLE_SECONDS`` without a job, when its folder is gone, or on SIGTERM. Its jobs do not depend on it.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import select
import signal
import socket
import struct
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path

from deepseek_ops.adapters.local_launcher import processes
from deepseek_ops.adapters.local_launcher.folder import JobFolder, disk
from deepseek_ops.adapters.local_launcher.warm import MAX_REQUEST_BYTES, HostProcess, peer_user, short_path
from deepseek_ops.core.errors import DeepSeekOpsError, PermanentError
from deepseek_ops.jobs.entry import leave
from deepseek_ops.jobs.preload import preload
from deepseek_ops.jobs.supervise import supervisor_of

IDLE_SECONDS = 120.0
IDLE_VARIABLE = "DEEPSEEK_OPS_WARM_SECONDS"


def start_host(folder: Path) -> int:
    """Start the host of ``folder`` in the background unless it runs; return 0 once it listens."""
    with disk(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        return 0 if os.read(reading, 1) else 1
    os.close(reading)
    os.setsid()
    host = Host(folder, lock)
    os.write(writing, b"1")
    os.close(writing)
    preload()
    host.serve()
    return 0


class BadRequestError(PermanentError):
    """The host must not do what it was asked for."""


class Host:
    """One warm host: its socket, and the supervisors it has forked."""

    def __init__(self, folder: Path, lock: int) -> None:
        self._folder = folder
        self._lock = lock
        self._children: set[int] = set()
        self._idle_seconds = float(os.environ.get(IDLE_VARIABLE, IDLE_SECONDS))
        (folder / "ready").unlink(missing_ok=True)
        (folder / "socket").unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        with short_path(folder) as short:
            self._listener.bind(f"{short}/socket")
        self._listener.listen(64)
        me = processes.process(os.getpid())
        JobFolder(folder).write("host.json", HostProcess(pid=os.getpid(), start_ticks=me.start_ticks if me else 0))

    def serve(self) -> None:
        """Fork supervisors until nobody has wanted one for a while."""
        gc.collect()
        gc.freeze()  # the collector would write to, and so copy, the pages that the children share
        (self._folder / "ready").touch()
        busy = time.monotonic()
        while (self._folder / "socket").exists():
            if select.select([self._listener], [], [], 1.0)[0]:
                connection, _ = self._listener.accept()
                with connection:
                    self._answer(connection)
            self._reap()
            if self._children:
                busy = time.monotonic()
            elif time.monotonic() - busy > self._idle_seconds:
                break
        with contextlib.suppress(FileNotFoundError):
            (self._folder / "socket").unlink()

    def _answer(self, connection: socket.socket) -> None:
        """Fork a supervisor, or answer why not. The launcher starts the job cold then."""
        connection.settimeout(10)
        lock = -1
        try:
            header, descriptors, _, _ = socket.recv_fds(connection, 4, 1)
            if len(header) < 4 or not descriptors:
                return  # a launcher that was killed before it said what it wants
            lock = descriptors[0]
            files, environment = self._read(connection, struct.unpack("!I", header)[0])
            require_forkable()
            self._fork(connection, files, environment, lock)
        except (OSError, ValueError, KeyError, BadRequestError) as error:
            print(f"a request was refused: {error}", file=sys.stderr, flush=True)  # noqa: T201
            with contextlib.suppress(OSError):
                connection.sendall(f"the warm host refused: {error}\n".encode())
        finally:
            if lock >= 0:
                os.close(lock)

    def _fork(self, connection: socket.socket, files: JobFolder, environment: dict[str, str], lock: int) -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child == 0:
            self._be_supervisor(connection, files, environment, lock)
        self._children.add(child)

    def _read(self, connection: socket.socket, size: int) -> tuple[JobFolder, dict[str, str]]:
        """Return the job's folder and environment from a request of our own user for a job of our own root."""
        if peer_user(connection) != os.geteuid():
            raise BadRequestError("it came from another user")
        if size > MAX_REQUEST_BYTES:
            raise BadRequestError(f"it has {size} bytes, more than {MAX_REQUEST_BYTES}")
        with connection.makefile("rb") as stream:
            body = json.loads(stream.read(size))
        folder = Path(body["folder"])
        if folder.parent != self._folder.parents[1] / "jobs":
            raise BadRequestError(f"{folder} is not a job of this root")
        return JobFolder(folder), {str(name): str(value) for name, value in body["environment"].items()}

    def _be_supervisor(
        self, connection: socket.socket, files: JobFolder, environment: dict[str, str], lock: int
    ) -> None:
        """Turn this forked process into the supervisor of a job; never returns."""

        def started() -> None:
            connection.sendall(b"started\n")
            connection.close()
            os.close(lock)

        try:
            self._listener.close()
            os.close(self._lock)
            os.setsid()
            os.environ.clear()
            os.environ.update(environment)
            time.tzset()
            tempfile.tempdir = None  # was looked up in another environment
            _redirect(files)
            gc.unfreeze()
            supervisor_of(files).run(started)
            leave(0)
        except DeepSeekOpsError as error:
            connection.sendall(f"{error}\n".encode())
        except BaseException:  # noqa: BLE001  (it ends in the job's log)
            traceback.print_exc()
        finally:
            leave(1)

    def _reap(self) -> None:
        for child in list(self._children):
            if os.waitpid(child, os.WNOHANG) != (0, 0):
                self._children.discard(child)


def require_forkable() -> None:
    """Raise BadRequestError when a fork of this process could inherit a held lock or a GPU's state."""
    if not processes.single_threaded() or threading.active_count() != 1:
        names = ", ".join(thread.name for thread in threading.enumerate())
        raise BadRequestError(f"it has more than one thread ({names})")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        raise BadRequestError("it has initialised a GPU")


def _redirect(files: JobFolder) -> None:
    """Point stdin to nothing, stdout and stderr to the job's log."""
    with files.log.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
