"""The folder of one job: the only thing the launcher, the supervisor and the ranks share.

::

    lock              flock: held while an attempt starts and while its end is written, never while it runs
    spec.json         the JobSpec of the newest attempt
    attempt.json      number of the newest attempt: the fencing token
    supervisor.json   who runs that attempt; its mtime is the supervisor's heartbeat
    ranks.json        process ids of the ranks and how often they were restarted
    lease             its mtime says when somebody last wanted the job
    stop.json         why the job has to end
    requests/         what people asked of the running job, one numbered file each
    claims/           one empty file for each attempt that was started: no attempt is started twice
    reserve           space for the files that say how the attempt ended, given back when it has
    result.json       what the job returned, then status.json: how it ended
    events.jsonl      one JSON object a line        log.txt   stdout and stderr, all attempts
    work/             scratch of the job's own, kept over restarts and attempts

Every JSON file is replaced as a whole, so a reader sees the old one or the new one. A file that names another attempt
than ``attempt.json`` is left over and means nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TypeVar

from pydantic import Field, JsonValue

from deepseek_ops.adapters.local_launcher.errors import JobFolderError, NoSpaceForJobError
from deepseek_ops.core.errors import InvalidRecordError
from deepseek_ops.core.jobs import JobCause, JobRequest
from deepseek_ops.core.records import Record

MIN_FREE_BYTES = 64 << 20
"""Free space below which no job starts: a log and a few small files must always fit."""

JOB_VARIABLE = "DEEPSEEK_OPS_RUNNING_JOB"
"""Environment variable that names the folder of the job a process belongs to."""

RecordT = TypeVar("RecordT", bound=Record)


class Attempt(Record):
    """The newest attempt of a job."""

    attempt: int = Field(ge=1)
    device_seconds: float = Field(default=0.0, ge=0, description="Spent by the attempts before this one.")


class Supervisor(Record):
    """The process that runs an attempt. ``start_ticks`` tells it from a later process with the same id."""

    attempt: int = Field(ge=1)
    pid: int = Field(gt=0)
    start_ticks: int = Field(ge=0, description="Start time in clock ticks after boot, from /proc/<pid>/stat.")
    machine: str = Field(description="Boot id and process-id namespace in which pid means something.")
    started_at: float = Field(description="Seconds since the epoch.")


class StopRequest(Record):
    """Why an attempt has to end.

    A stop is somebody's decision. A timeout is a failure. A signal that nobody announced means that the machine goes
    down, or that somebody cleans up without knowing us: the job is lost, and the next try resumes it.
    """

    attempt: int = Field(ge=1)
    reason: str = Field(min_length=1)
    cause: Literal["stop", "timeout", "signal"] = "stop"
    counts_as: JobCause | None = Field(default=None, description="Cause of the end that it brings, where it is known.")


class RankGroup(Record):
    """The rank processes that run now."""

    attempt: int = Field(ge=1)
    restarts: int = Field(default=0, ge=0)
    pids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class JobFolder:
    """The files of one job. Its methods raise JobFolderError and NoSpaceForJobError where the disk refuses."""

    path: Path

    @property
    def marker(self) -> str:
        """``NAME=value`` in the environment of every program that the job starts: whose process it is."""
        return f"{JOB_VARIABLE}={self.path}"

    @property
    def log(self) -> Path:
        return self.path / "log.txt"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def lease(self) -> Path:
        return self.path / "lease"

    @property
    def work(self) -> Path:
        return self.path / "work"

    @property
    def claims(self) -> Path:
        return self.path / "claims"

    def read(self, name: str, kind: type[RecordT]) -> RecordT | None:
        """Return the record in file ``name``, or None when it is missing, or not whole after a power cut."""
        body = read_json(self.path / name)
        if body is None:
            return None
        try:
            return kind.load(body)
        except InvalidRecordError:
            return None

    def write(self, name: str, record: Record) -> None:
        """Replace file ``name`` by the record."""
        write_json(self.path / name, record.dump())

    def attempt(self) -> Attempt | None:
        """Return the newest attempt, or None before the first."""
        return self.read("attempt.json", Attempt)

    def stop_request(self, attempt: int) -> StopRequest | None:
        """Return why this attempt has to end, or None while it may go on."""
        request = self.read("stop.json", StopRequest)
        return request if request is not None and request.attempt == attempt else None

    def request_stop(self, request: StopRequest) -> None:
        """Write the request unless the attempt has one already: the first reason is the one that counts."""
        if self.stop_request(request.attempt) is None:
            self.write("stop.json", request)

    def ask(self, verb: Literal["checkpoint", "rewind"], *, step: int | None, by: str) -> int:
        """Add a request of a person and return its number; two people at once get two numbers."""
        folder = self.path / "requests"
        with disk(folder):
            folder.mkdir(mode=0o700, exist_ok=True)
            while True:
                number = 1 + max((int(path.stem) for path in folder.glob("[0-9]*.json")), default=0)
                part = folder / f".{number}.{_writer()}"
                write_json(part, JobRequest(number=number, verb=verb, step=step, by=by).dump())
                try:
                    os.link(part, folder / f"{number:06d}.json")
                except FileExistsError:
                    continue
                finally:
                    part.unlink(missing_ok=True)
                return number

    def requests(self, after: int) -> list[JobRequest]:
        """Return the requests with a number above ``after``, in order."""
        folder = self.path / "requests"
        names = sorted(path.name for path in folder.glob("[0-9]*.json") if int(path.stem) > after)
        return [found for name in names if (found := self.read(f"requests/{name}", JobRequest)) is not None]

    def append_event(self, kind: str, attempt: int, fields: Mapping[str, object]) -> None:
        """Append one event. One write to a file opened for appending: lines of many processes never mix."""
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        body = {"time": time, "kind": kind, "attempt": attempt}
        line = json.dumps(plain({**fields, **body}), allow_nan=False, ensure_ascii=False) + "\n"
        with disk(self.events), self.events.open("ab", buffering=0) as file:
            file.write(line.encode())

    @contextlib.contextmanager
    def locked(self) -> Iterator[int]:
        """Hold the job's lock and give its file descriptor; waits for whoever holds it now.

        The folder may be retired while we wait, and the lock with it: then the lock of the new folder is taken.
        """
        while True:
            with disk(self.path):
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if self._holds(lock):
                    yield lock
                    return
            finally:
                os.close(lock)

    def lock_is_held(self) -> bool:
        """Return whether somebody is starting or settling an attempt right now."""
        try:
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    def _holds(self, lock: int) -> bool:
        try:
            return os.path.samestat((self.path / "lock").stat(), os.fstat(lock))
        except FileNotFoundError:
            return False


def read_json(path: Path) -> dict[str, JsonValue] | None:
    """Return the JSON object in ``path``, or None when there is none. Raises JobFolderError when it is unreadable."""
    try:
        body = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    except OSError as error:
        raise JobFolderError(str(path), error.strerror or str(error)) from error
    return body if isinstance(body, dict) else None


def write_json(path: Path, body: Mapping[str, JsonValue]) -> None:
    """Replace ``path`` by the JSON of ``body`` and make it durable: a reader sees the old file or the new one."""
    part = path.with_name(f".{path.name}.{_writer()}")
    with disk(path):
        try:
            with part.open("wb") as file:
                file.write(json.dumps(body, ensure_ascii=False, allow_nan=False).encode())
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def _writer() -> str:
    """Return a name that no other writer of this machine has now; one process may write from several threads."""
    return f"{os.getpid()}.{threading.get_ident()}"


def plain(value: object) -> JsonValue:
    """Return ``value`` as JSON that every reader accepts: NaN and infinities become strings, scalars plain numbers."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}[str(value)]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    item = getattr(value, "item", None)  # a scalar of numpy or torch, which we do not import
    if callable(item):
        return plain(item())
    if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, (bytes, bytearray)):
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} is not JSON")


@contextlib.contextmanager
def disk(path: Path) -> Iterator[None]:
    """Turn what the operating system says about a file into errors that say what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            there = next(folder for folder in path.parents if folder.exists())  # some of them could not be made
            free = shutil.disk_usage(there).free
            raise NoSpaceForJobError(str(path), free, MIN_FREE_BYTES) from error
        raise JobFolderError(str(path), error.strerror or str(error)) from error


def require_space(path: Path, needed_bytes: int) -> None:
    """Raise NoSpaceForJobError when fewer than ``needed_bytes`` are free on the disk of ``path``."""
    with disk(path):
        free = shutil.disk_usage(path).free
    if free < needed_bytes:
        raise NoSpaceForJobError(str(path), free, needed_bytes)
