"""What can be read off a job's folder, by anybody, at any time: status, log, events."""

from __future__ import annotations

import codecs
import json
import time

from pydantic import JsonValue

from deepseek_ops.adapters.local_launcher import processes
from deepseek_ops.adapters.local_launcher.folder import Attempt, JobFolder, RankGroup, Supervisor, disk
from deepseek_ops.core.jobs import JobCause, JobPhase, JobSpec, JobStatus

LOG_CHUNK_BYTES = 16 << 20
HEARTBEAT_LIMIT_SECONDS = 30.0
"""Silence after which a supervisor on another machine, whose processes we cannot see, counts as dead."""
_TAIL_BYTES = 64 << 10


def status_of(files: JobFolder, name: str, *, lock_is_ours: bool = False) -> JobStatus | None:
    """Return the job's status, or None before its first attempt.

    ``lock_is_ours`` tells that the caller holds the job's lock, so that nobody else can be starting it.
    """
    newest = files.attempt()
    if newest is None:
        return None
    ended = _ended(files, newest)
    if ended is not None:
        return ended
    supervisor = files.read("supervisor.json", Supervisor)
    if supervisor is None or supervisor.attempt != newest.attempt:
        if not lock_is_ours and files.lock_is_held():
            return _live(files, name, newest, None, JobPhase.RUNNING)
        supervisor = files.read("supervisor.json", Supervisor)  # it may have started between the two looks
        if supervisor is None or supervisor.attempt != newest.attempt:
            return _live(files, name, newest, None, JobPhase.LOST, "its supervisor never started")
    if runs(files, supervisor):
        return _live(files, name, newest, supervisor, JobPhase.RUNNING)
    # On this boot of this machine somebody killed it; elsewhere the machine itself has stopped talking.
    away = supervisor.machine != processes.machine()
    reason = "its supervisor ended without a word: killed, or the machine went down"
    lost = _live(files, name, newest, supervisor, JobPhase.LOST, reason)
    return _ended(files, newest) or lost.evolve(cause=JobCause.MACHINE_LOST if away else None)


def runs(files: JobFolder, supervisor: Supervisor) -> bool:
    """Return whether the supervisor still runs; of one on another machine only the heartbeat can be seen."""
    if supervisor.machine == processes.machine():
        return processes.is_alive(supervisor.pid, supervisor.start_ticks)
    return time.time() - _heartbeat(files) < HEARTBEAT_LIMIT_SECONDS


def read_log(files: JobFolder, offset: int) -> tuple[str, int]:
    """Return the log from byte ``offset`` on, at most 16 MiB of it, and the offset to go on from.

    A character that is cut, because its last byte is not written yet, is left for the next call.
    """
    if not files.log.exists():
        return "", offset
    with disk(files.log), files.log.open("rb") as file:
        file.seek(offset)
        data = file.read(LOG_CHUNK_BYTES)
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    text = decoder.decode(data)
    return text, offset + len(data) - len(decoder.getstate()[0])


def read_events(files: JobFolder, after: int) -> list[dict[str, JsonValue]]:
    """Return the whole events after the first ``after``. A line that is no JSON object is an event ``damaged``."""
    if not files.events.exists():
        return []
    with disk(files.events), files.events.open("rb") as file:
        lines = [line for number, line in enumerate(file) if number >= after and line.endswith(b"\n")]
    return [_event(line) for line in lines]


def last_step(files: JobFolder) -> int | None:
    """Return the step of the newest event that has one, looking back over the last 64 KiB of events."""
    if not files.events.exists():
        return None
    with disk(files.events), files.events.open("rb") as file:
        end = file.seek(0, 2)
        file.seek(max(0, end - _TAIL_BYTES))
        lines = file.read().splitlines()
    for line in reversed(lines):
        step = _event(line).get("step") if b'"step"' in line else None
        if isinstance(step, int):
            return step
    return None


def _event(line: bytes) -> dict[str, JsonValue]:
    try:
        body = json.loads(line)
    except ValueError:
        body = None
    return body if isinstance(body, dict) else {"kind": "damaged"}


def _ended(files: JobFolder, newest: Attempt) -> JobStatus | None:
    status = files.read("status.json", JobStatus)
    if status is None or status.attempt != newest.attempt:
        return None
    return status.evolve(step=last_step(files))


def _live(
    files: JobFolder, name: str, newest: Attempt, supervisor: Supervisor | None, phase: JobPhase, reason: str = ""
) -> JobStatus:
    spec = files.read("spec.json", JobSpec)
    group = files.read("ranks.json", RankGroup)
    wall = 0.0
    if supervisor is not None:
        until = time.time() if phase is JobPhase.RUNNING else _heartbeat(files)
        wall = max(0.0, until - supervisor.started_at)
    return JobStatus(
        name=name,
        phase=phase,
        reason=reason,
        attempt=newest.attempt,
        restarts=group.restarts if group is not None and group.attempt == newest.attempt else 0,
        step=last_step(files),
        wall_seconds=wall,
        device_seconds=newest.device_seconds + wall * (spec.num_ranks if spec else 1),
        pid=supervisor.pid if supervisor is not None else None,
        log=str(files.log),
    )


def _heartbeat(files: JobFolder) -> float:
    try:
        return (files.path / "supervisor.json").stat().st_mtime
    except FileNotFoundError:
        return 0.0
