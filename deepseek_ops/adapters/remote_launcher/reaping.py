"""What nobody looks after any more: jobs whose lease has died, engine jobs that no attempt stands for.

Agents end what is not wanted, so there is something to do here only where an agent cannot: it hangs, its job waits in a
queue, the engine has started one job twice, or a launcher was killed in between. Run it every few minutes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from deepseek_ops.adapters.remote_launcher.asking import is_of_store
from deepseek_ops.adapters.remote_launcher.launcher import RemoteLauncher
from deepseek_ops.adapters.remote_launcher.layout import NAMES, Control, JobKeys, RemoteAttempt, RemoteStop
from deepseek_ops.core.errors import ObjectExistsError, ObjectNotFoundError
from deepseek_ops.core.jobs import EngineState
from deepseek_ops.core.ports import ObjectInfo
from deepseek_ops.core.records import canonical_json

AFTER_LEASE_SECONDS = 60.0
SLACK_SECONDS = 60.0
"""Between the store's clock and ours, and for an agent that is writing its last words."""
EMPTY_SECONDS = 3600.0
"""Age of a name without attempts that a killed submit or retire left."""


@dataclass(frozen=True, slots=True)
class Reaped:
    """One thing that was cleared away."""

    job: str
    """Name of the job; empty for an engine job that no attempt stands for."""
    engine_id: str
    action: Literal["cancelled", "retired", "removed"]
    reason: str


def reap(launcher: RemoteLauncher, *, now: float | None = None) -> list[Reaped]:
    """Clear away what nobody looks after, and return what that was. ``now`` is in Unix seconds.

    Jobs of other stores on the same engine are left alone. Doing it twice, or from two places at once, is harmless.
    Costs a listing of the engine, a listing of the jobs' names and one of each job, whatever state that is in.
    """
    clock = time.time() if now is None else now
    # The engine first: an attempt is decided before its engine job starts, so each of these has its attempt in view.
    states = {state.id: state for state in launcher.engine.list() if is_of_store(state.id, launcher.store.uri)}
    legitimate: set[str] = set()
    done: list[Reaped] = []
    for info in launcher.store.list(NAMES):
        name = info.key.removeprefix(NAMES)
        control = launcher.reader.control(name)
        if not control.newest:
            done += _remove_empty(launcher, name, info, clock)
            continue
        try:
            record = launcher.reader.attempt(control, control.newest)
        except ObjectNotFoundError:
            continue  # retired just now
        legitimate.add(record.engine_id)
        done += _reap_job(launcher, record, control, states.get(record.engine_id), clock)
    return [*done, *_reap_orphans(launcher, [state for id_, state in states.items() if id_ not in legitimate])]


def _reap_job(
    launcher: RemoteLauncher, record: RemoteAttempt, control: Control, state: EngineState | None, now: float
) -> Iterator[Reaped]:
    """Yield what was done about the newest attempt of a job."""
    name, number = record.spec.name, record.attempt
    ended = control.files.get(number, {}).get("ended.json")
    if ended is not None:
        if state is not None and state.settled:
            launcher.engine.retire(record.engine_id)
            yield Reaped(name, record.engine_id, "retired", "it has ended")
        elif state is not None and now - ended.modified > AFTER_LEASE_SECONDS + SLACK_SECONDS:
            launcher.engine.cancel(record.engine_id, grace_seconds=0.0)
            yield Reaped(name, record.engine_id, "cancelled", "it has ended, and its processes have not")
        return
    overdue = _overdue(record, control, now)
    if overdue > 0:
        reason = f"lease expired: not renewed for {overdue:.0f} seconds more than lease_seconds"
        with suppress(ObjectExistsError):
            key = JobKeys(name).of(number, "stop.json")
            launcher.store.create(key, canonical_json(RemoteStop(reason=reason).dump()))
        if state is None or not state.settled:
            launcher.engine.cancel(record.engine_id, grace_seconds=record.spec.grace_seconds)
            yield Reaped(name, record.engine_id, "cancelled", reason)
        status = launcher.status(name)
        if status is not None and status.settled:
            launcher.reader.settle(status)


def _overdue(record: RemoteAttempt, control: Control, now: float) -> float:
    """Return for how many seconds the job should have been over; at most 0 while it need not be."""
    files = control.files.get(record.attempt, {})
    renewals = [info.modified for name, info in files.items() if name.startswith("lease/")]
    wanted = max([control.created[record.attempt].modified, *renewals])
    if not record.spec.lease_seconds or not wanted:
        return 0.0
    overdue = now - wanted - record.spec.lease_seconds
    return overdue if overdue > AFTER_LEASE_SECONDS + SLACK_SECONDS else 0.0


def _reap_orphans(launcher: RemoteLauncher, states: list[EngineState]) -> Iterator[Reaped]:
    """Yield what was done about engine jobs of older attempts, or of none."""
    for state in states:
        if state.settled:
            launcher.engine.retire(state.id)
            yield Reaped("", state.id, "retired", "no attempt stands for it")
        else:
            launcher.engine.cancel(state.id, grace_seconds=0.0)
            yield Reaped("", state.id, "cancelled", "no attempt stands for it")


def _remove_empty(launcher: RemoteLauncher, name: str, info: ObjectInfo, now: float) -> Iterator[Reaped]:
    if info.modified and now - info.modified > EMPTY_SECONDS:
        launcher.retire(name)
        yield Reaped(name, "", "removed", "it has no attempt")
