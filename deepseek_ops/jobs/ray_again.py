"""What a Ray job whose machines were gathered anew does with the job in the store: it begins another attempt.

The engine's job goes on, but an attempt is more than that: its number is the fencing token. A machine that was cut
off may still run ranks of the old one; with a number of its own, the new gathering may write and the old one may not.
The number is taken as ever by creating ``attempts/NNNNNN.json``. If a launcher that has given the old attempt up is
faster, that one's number stands, and these machines have nothing to do any more.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress

from deepseek_ops.adapters.local_launcher.budget import LEAST_SECONDS
from deepseek_ops.adapters.remote_launcher.layout import (
    STARTED,
    Beat,
    Control,
    JobKeys,
    RemoteAttempt,
    RemoteResult,
    read_control,
)
from deepseek_ops.core.errors import ObjectExistsError, ObjectNotFoundError
from deepseek_ops.core.jobs import JobCause, JobPhase, JobRequest, JobSpec, JobStatus
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import canonical_json

BY = "ray"
"""Who asked, in the request for a checkpoint before machines are taken away."""
_TRIES = 5


def attended_job(command: Sequence[str]) -> str:
    """Return the job that the command attends; "" for a command that is no ``jobs attend``."""
    words = list(command)
    if "attend" not in words or "--job" not in words or "--attempt" not in words:
        return ""
    return words[words.index("--job") + 1]


def with_attempt(command: Sequence[str], attempt: int) -> tuple[str, ...]:
    """Return the command for another attempt."""
    words = list(command)
    words[words.index("--attempt") + 1] = str(attempt)
    return tuple(words)


def begin_again(store: ObjectStore, job: str, engine_id: str, num_nodes: int) -> int:
    """Return the number of a new attempt on ``num_nodes`` machines of ``engine_id``; 0 when the job needs none.

    It does not when it has ended, when somebody wants it to stop, or when another engine's job has it by now. The new
    attempt is there before the old one's end is, so that nobody who looks at the job sees it lost in between; what the
    old one's last processes still say is said of an attempt that nobody asks about any more.
    Called twice, it makes two attempts; the machines run the one they are told, and nobody the other.
    """
    keys = JobKeys(job)
    for _ in range(_TRIES):
        control = read_control(store, keys)
        newest = _newest(store, keys, control)
        if newest is None or newest.engine_id != engine_id or control.has(newest.attempt, "stop.json"):
            return 0
        end = _end(store, keys, control, newest)
        if end.phase is not JobPhase.LOST:
            _keep(store, keys.of(newest.attempt, "ended.json"), canonical_json(end.dump()))
            return 0
        spec = _left_of(newest.spec, end).evolve(num_nodes=num_nodes)
        following = newest.evolve(attempt=newest.attempt + 1, spec=spec, device_seconds=end.device_seconds)
        if _keep(store, keys.attempt(following.attempt), canonical_json(following.dump())):
            _keep(store, keys.of(newest.attempt, "ended.json"), canonical_json(end.dump()))
            with suppress(ObjectNotFoundError):  # the engine has accepted this one, too
                started = store.get(keys.of(newest.attempt, STARTED))
                _keep(store, keys.of(following.attempt, STARTED), started)
            return following.attempt
    return 0


def _left_of(spec: JobSpec, end: JobStatus) -> JobSpec:
    """Return the job with what the attempt that ended has left of its budget; nothing left ends the next at once."""
    if spec.budget_seconds is None:
        return spec
    return spec.evolve(timeout_seconds=max(LEAST_SECONDS, spec.timeout_seconds - end.wall_seconds))


def ask_for_checkpoint(store: ObjectStore, job: str) -> int:
    """Ask the newest attempt for a checkpoint, as a person would; return the request's number, 0 if there is none."""
    keys = JobKeys(job)
    for _ in range(_TRIES):
        control = read_control(store, keys)
        if not control.newest:
            return 0
        request = JobRequest(number=control.last_request + 1, verb="checkpoint", by=BY)
        key = keys.of(control.newest, f"requests/{request.number:06d}.json")
        with suppress(ObjectExistsError):
            store.create(key, canonical_json(request.dump()))
            return request.number
    return 0


def _newest(store: ObjectStore, keys: JobKeys, control: Control) -> RemoteAttempt | None:
    if not control.newest:
        return None
    return RemoteAttempt.load(json.loads(store.get(keys.attempt(control.newest))))


def _end(store: ObjectStore, keys: JobKeys, control: Control, record: RemoteAttempt) -> JobStatus:
    """Return how the attempt ended: as is written, as its result says, or lost."""
    with suppress(ObjectNotFoundError):
        return RemoteResult.load(json.loads(store.get(keys.result(record.attempt)))).status
    if control.has(record.attempt, "ended.json"):
        return JobStatus.load(json.loads(store.get(keys.of(record.attempt, "ended.json"))))
    return _lost(store, keys, control, record)


def _keep(store: ObjectStore, key: str, data: bytes) -> bool:
    """Store ``data``; return False when something is stored there already."""
    try:
        store.create(key, data)
    except ObjectExistsError:
        return False
    return True


def _lost(store: ObjectStore, keys: JobKeys, control: Control, record: RemoteAttempt) -> JobStatus:
    beat = Beat(node=0)
    last = control.newest_beat(record.attempt, 0)
    if last:
        with suppress(ObjectNotFoundError):  # replaced since the listing
            beat = Beat.load(json.loads(store.get(keys.of(record.attempt, last))))
    return JobStatus(
        name=record.spec.name,
        phase=JobPhase.LOST,
        reason="machines were lost, and Ray gathered them anew",
        cause=JobCause.MACHINE_LOST,
        attempt=record.attempt,
        restarts=beat.restarts,
        step=beat.step,
        wall_seconds=beat.wall_seconds,
        device_seconds=record.device_seconds + beat.wall_seconds * record.spec.num_ranks * record.spec.num_nodes,
        log=f"{store.uri}/{keys.log}",
    )
