"""The launcher of this machine: jobs as supervised process trees below one root folder.

Nothing runs here but the start: the supervisor leads a session of its own, so the caller (an Airflow task, a trigger,
a shell) may be killed at any instant without touching the job, and any later launcher on the same root finds it again.
Exactly one attempt of a job runs at a time: an attempt is begun under the job's file lock, the lock travels into the
supervisor and is released when the folder names the supervisor, and what a dead supervisor left is killed before the
next attempt begins.
"""

from __future__ import annotations

import builtins
import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from deepseek_ops.adapters.local_launcher import processes
from deepseek_ops.adapters.local_launcher.budget import within_budget
from deepseek_ops.adapters.local_launcher.errors import (
    JobNotRunningError,
    JobNotSettledError,
    OneMachineError,
    UnknownJobError,
)
from deepseek_ops.adapters.local_launcher.folder import (
    MIN_FREE_BYTES,
    Attempt,
    JobFolder,
    StopRequest,
    Supervisor,
    disk,
    read_json,
    require_space,
)
from deepseek_ops.adapters.local_launcher.reading import read_events, read_log, status_of
from deepseek_ops.adapters.local_launcher.starting import job_environment, start_cold
from deepseek_ops.adapters.local_launcher.warm import WarmHost, hosts_below
from deepseek_ops.core.errors import JobFailedError, JobLostError, JobStoppedError
from deepseek_ops.core.jobs import JobPhase, JobSpec, JobStatus

LIGHT_KINDS = frozenset({"prepare"})
"""Kinds that import nothing heavy: they use a host that is ready, and start cold sooner than wait for one."""


class LocalLauncher:
    """Runs jobs on this machine, below ``root``.

    Args:
        root: Folder of the jobs, on a disk of this machine. Created when it is not there.
        warm: Fork jobs from a process that holds the heavy imports already.
        python: Interpreter with deepseek-ops[train]; a job's own ``python`` goes before it.
        min_free_bytes: Free disk space without which no job starts.
    """

    def __init__(
        self,
        root: Path,
        *,
        warm: bool = True,
        python: str = sys.executable,
        min_free_bytes: int = MIN_FREE_BYTES,
    ) -> None:
        self._root = root.resolve()
        self._warm = warm
        self._python = python
        self._min_free_bytes = min_free_bytes

    def submit(self, job: JobSpec, *, secrets: Mapping[str, str] | None = None) -> JobStatus:
        """Start the job unless one of its name runs or has succeeded; return its status either way.

        Raises NoSpaceForJobError, JobFolderError, JobStartError, BudgetSpentError, and OneMachineError for a training
        of several machines.
        """
        if job.num_nodes > 1:
            raise OneMachineError(job.name, job.num_nodes)
        files = self._files(job.name)
        with files.locked() as lock:
            known = status_of(files, job.name, lock_is_ours=True)
            if known is None or known.phase not in (JobPhase.RUNNING, JobPhase.SUCCEEDED):
                require_space(files.path, self._min_free_bytes)
                self._begin(files, job, known)
                self._start(files, job, secrets or {}, lock)
            self._touch_lease(files)
        return self._status(job.name)

    def page(self, name: str) -> str:
        """Return nothing: processes of this machine have no interface of their own."""
        del name
        return ""

    def prewarm(self, environment: Mapping[str, str] | None = None) -> None:
        """Start the warm host in the background, so that its imports are done when the first job comes.

        ``environment`` is what the jobs' ``JobSpec.environment`` will hold.
        """
        if self._warm:
            WarmHost.of(self._root, self._python, {**job_environment(), **(environment or {})}).start()

    def status(self, name: str) -> JobStatus | None:
        """Return the job's status, or None when no job of that name was ever submitted under this root.

        What a lost job left running is killed on the way, so a job that is reported lost holds no machine.
        """
        files = self._files(name)
        status = status_of(files, name)
        if status is not None and status.phase is JobPhase.LOST:
            _kill_leftovers(files)
        return status

    def result(self, name: str) -> dict[str, JsonValue]:
        """Return what a succeeded job returned.

        Raises JobLostError, JobFailedError, JobStoppedError, JobNotSettledError, UnknownJobError.
        """
        status = self._status(name)
        if status.phase is JobPhase.RUNNING:
            raise JobNotSettledError(name)
        if status.phase is JobPhase.STOPPED:
            raise JobStoppedError(name, status.reason)
        if status.phase is JobPhase.FAILED:
            raise JobFailedError(name, status.reason, status.log)
        result = read_json(self._files(name).path / "result.json") if status.phase is JobPhase.SUCCEEDED else None
        if result is None:
            raise JobLostError(name, status.reason or "result.json is gone", status.log)
        return result

    def renew(self, name: str) -> None:
        """Renew the job's lease: somebody still wants it. Raises UnknownJobError."""
        self._status(name)
        self._touch_lease(self._files(name))

    def stop(self, name: str, reason: str) -> None:
        """Ask the job to checkpoint and end, kill it after its grace; returns at once. Raises UnknownJobError."""
        status = self._status(name)
        if status.settled:
            return
        files = self._files(name)
        files.request_stop(StopRequest(attempt=status.attempt, reason=reason or "no reason given"))
        supervisor = files.read("supervisor.json", Supervisor)
        if supervisor is not None and _is_here(supervisor):
            with contextlib.suppress(ProcessLookupError):
                os.kill(supervisor.pid, signal.SIGTERM)  # only to wake it: the request is in the file

    def ask(self, name: str, verb: Literal["checkpoint", "rewind"], *, step: int | None = None, by: str = "") -> int:
        """Ask a running training for a checkpoint, or to go back to a healthy one; return the request's number.

        Raises UnknownJobError, and JobNotRunningError for a job that has ended: nobody would obey.
        """
        status = self._status(name)
        if status.settled:
            raise JobNotRunningError(name, str(status.phase))
        return self._files(name).ask(verb, step=step, by=by)

    def logs(self, name: str, offset: int = 0) -> tuple[str, int]:
        """Return the log from byte ``offset`` on (at most 16 MiB a call), and the offset to go on from."""
        return read_log(self._files(name), offset)

    def events(self, name: str, after: int = 0) -> builtins.list[dict[str, JsonValue]]:
        """Return the job's events after the first ``after``, oldest first, over all attempts."""
        return read_events(self._files(name), after)

    def list(self) -> builtins.list[JobStatus]:
        """Return every job under this root, by name."""
        folder = self._root / "jobs"
        if not folder.is_dir():
            return []
        names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
        return [status for name in names if (status := self.status(name)) is not None]

    def retire(self, name: str) -> None:
        """Remove the folder of a settled job, its work folder and log included. A job that is gone is no error.

        Raises JobNotSettledError.
        """
        files = self._files(name)
        if not files.path.exists():
            return
        aside = files.path.with_name(f".retired-{name}-{os.getpid()}")
        with files.locked():
            status = status_of(files, name, lock_is_ours=True)
            if status is not None and not status.settled:
                raise JobNotSettledError(name)
            _kill_leftovers(files)
            with disk(files.path):
                files.path.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def shutdown(self, reason: str = "launcher shut down", *, grace_seconds: float = 30.0) -> None:
        """Stop every running job and wait at most ``grace_seconds`` for them; kill the rest, end the warm hosts."""
        running = [status.name for status in self.list() if not status.settled]
        for name in running:
            self.stop(name, reason)
        deadline = time.monotonic() + grace_seconds
        while running and time.monotonic() < deadline:
            time.sleep(0.1)
            running = [name for name in running if not self._status(name).settled]
        for name in running:
            files = self._files(name)
            supervisor = files.read("supervisor.json", Supervisor)
            if supervisor is not None and _is_here(supervisor):
                processes.kill_session(supervisor.pid, supervisor.start_ticks, marker=files.marker)
        for host in hosts_below(self._root):
            host.stop()

    def _files(self, name: str) -> JobFolder:
        return JobFolder(self._root / "jobs" / name)

    def _status(self, name: str) -> JobStatus:
        status = self.status(name)
        if status is None:
            raise UnknownJobError(name, str(self._root))
        return status

    def _touch_lease(self, files: JobFolder) -> None:
        with disk(files.lease):
            files.lease.touch(mode=0o600)

    def _begin(self, files: JobFolder, job: JobSpec, known: JobStatus | None) -> None:
        """Raise the fencing token; from here on what an older attempt wrote means nothing."""
        spent = known.device_seconds if known is not None else 0.0
        job = within_budget(job, spent, num_ranks=job.num_ranks)
        _kill_leftovers(files)
        with disk(files.path):
            files.claims.mkdir(mode=0o700, exist_ok=True)
            files.work.mkdir(mode=0o700, exist_ok=True)
        files.write("spec.json", job)
        number = known.attempt + 1 if known is not None else 1
        files.write("attempt.json", Attempt(attempt=number, device_seconds=spent))

    def _start(self, files: JobFolder, job: JobSpec, secrets: Mapping[str, str], lock: int) -> None:
        python = job.python or self._python
        environment = {**job_environment(), **job.environment}
        if self._warm:
            host = WarmHost.of(self._root, python, environment)
            if host.ready or job.kind not in LIGHT_KINDS:
                host.start()
                problem = host.fork(files, {**environment, **secrets}, lock)
                if not problem:
                    return
                files.append_event("cold_start", self._attempt_number(files), {"reason": problem})
        start_cold(files, job.name, python, {**environment, **secrets}, lock)

    def _attempt_number(self, files: JobFolder) -> int:
        attempt = files.attempt()
        return attempt.attempt if attempt is not None else 1


def _is_here(supervisor: Supervisor) -> bool:
    """Return whether the supervisor runs, and on this machine: only then its id may be signalled."""
    here = supervisor.machine == processes.machine()
    return here and processes.is_alive(supervisor.pid, supervisor.start_ticks)


def _kill_leftovers(files: JobFolder) -> None:
    """Kill what a dead supervisor's session still holds. A living one's is left alone."""
    supervisor = files.read("supervisor.json", Supervisor)
    if supervisor is None or supervisor.machine != processes.machine() or _is_here(supervisor):
        return
    processes.kill_session(supervisor.pid, supervisor.start_ticks, marker=files.marker)
