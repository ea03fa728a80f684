"""The job's folder on an engine's machine: scratch that a later attempt on the same machine finds again."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from pathlib import Path

from deepseek_ops.adapters.local_launcher import processes
from deepseek_ops.adapters.local_launcher.folder import Attempt, JobFolder, Supervisor, disk
from deepseek_ops.adapters.remote_launcher.layout import JobKeys, RemoteAttempt, read_control
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.jobs.nodes import NodePlace

SCRATCH_VARIABLE = "DEEPSEEK_OPS_SCRATCH"
"""Folder on a disk of the machine where jobs work; default: a private one below the system's temporary folder."""
OLD_SECONDS = 7 * 24 * 3600.0
"""Folders that no agent has looked at for so long belong to jobs that nobody resumes."""
NET_SECONDS = 10.0
"""By how much later than the agent the supervisor looks at the lease: it is there for an agent that hangs."""


def scratch_folder() -> Path:
    """Return the folder of all jobs on this machine, made if it is not there, closed to other users."""
    named = os.environ.get(SCRATCH_VARIABLE, "")
    folder = Path(named) if named else Path(tempfile.gettempdir()) / f"deepseek-ops-{os.geteuid()}"
    with disk(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not named and folder.stat().st_uid != os.geteuid():
            raise PermissionError(1, "it belongs to another user", str(folder))
    return folder


def prepare_folder(scratch: Path, store: ObjectStore, record: RemoteAttempt, place: NodePlace) -> JobFolder:
    """Return the folder, ready for a supervisor to begin the attempt in it.

    What an older attempt of the job has left running on this machine is killed: the store says that it is over.
    """
    _sweep(scratch)
    folder = scratch / f"{record.spec.name}-{record.life}-{place.rank}"
    files = JobFolder(folder)
    with disk(folder):
        files.claims.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.work.mkdir(mode=0o700, exist_ok=True)
        files.log.touch(mode=0o600)
        files.lease.touch(mode=0o600)
    supervisor = files.read("supervisor.json", Supervisor)
    if supervisor is not None and supervisor.machine == processes.machine() and supervisor.attempt < record.attempt:
        processes.kill_session(supervisor.pid, supervisor.start_ticks, marker=files.marker)
    spec = record.spec
    if spec.lease_seconds:
        spec = spec.evolve(lease_seconds=spec.lease_seconds + NET_SECONDS)
    (files.path / f"claims/{record.attempt}").unlink(missing_ok=True)  # whose it is has been decided in the store
    _forget_other_requests(files, store, record)
    files.write("spec.json", spec)
    files.write("attempt.json", Attempt(attempt=record.attempt, device_seconds=record.device_seconds))
    return files


def remove_folder(files: JobFolder) -> None:
    """Remove the folder of a job that will not be resumed."""
    shutil.rmtree(files.path, ignore_errors=True)


def _forget_other_requests(files: JobFolder, store: ObjectStore, record: RemoteAttempt) -> None:
    """Remove what was asked of older attempts: people ask something of the training that they see run."""
    control = read_control(store, JobKeys(record.spec.name))
    wanted = {f"{number:06d}.json" for number in control.requests(record.attempt)}
    for path in (files.path / "requests").glob("[0-9]*.json"):
        if path.name not in wanted:
            path.unlink(missing_ok=True)


def _sweep(scratch: Path) -> None:
    for folder in scratch.iterdir():
        beat = folder / "supervisor.json"  # a living supervisor touches it every few seconds
        if beat.exists() and time.time() - beat.stat().st_mtime > OLD_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)
