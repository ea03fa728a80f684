"""The launcher of every engine that runs jobs on other machines: all state of a job is in the object store.

The engine (Ray, Slurm, Kubernetes, SageMaker) decides where a command runs, and nothing else. So there is one answer
to what each of them leaves open: who may start an attempt (who creates its number), who runs it (who claims its
nodes), how it ended (who creates its end), what it logged, and whether somebody still wants it. Every step can be cut
off and done again by anybody: an attempt whose starter died is started by the next ``submit``, because the engine's id
is part of the attempt; an end that was not written is written by the next look, from the result that is there.

A job that is reported lost may still have processes somewhere, where an engine has forgotten them. They cannot do
harm: the next attempt begins by writing the end of this one, so nothing they return counts, their agents see that end
or the newer attempt within seconds, and without renewals of their lease they end anyway.
"""

from __future__ import annotations

import builtins
import json
import secrets as random
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Literal

from pydantic import JsonValue

from deepseek_ops.adapters.local_launcher.budget import within_budget
from deepseek_ops.adapters.local_launcher.errors import JobNotRunningError, JobNotSettledError, UnknownJobError
from deepseek_ops.adapters.remote_launcher.asking import NodeShape, engine_job, new_engine_id, ranks_per_node
from deepseek_ops.adapters.remote_launcher.errors import RequestRaceError, SubmitRaceError
from deepseek_ops.adapters.remote_launcher.layout import (
    NAMES,
    STARTED,
    Control,
    JobKeys,
    RemoteAttempt,
    RemoteResult,
    RemoteStop,
    Started,
)
from deepseek_ops.adapters.remote_launcher.reading import JobReader
from deepseek_ops.adapters.remote_launcher.shared_log import SharedLog
from deepseek_ops.core.errors import (
    JobFailedError,
    JobLostError,
    JobStoppedError,
    ObjectExistsError,
    ObjectNotFoundError,
    PermanentError,
)
from deepseek_ops.core.jobs import EngineState, JobPhase, JobRequest, JobSpec, JobStatus
from deepseek_ops.core.ports import Engine, ObjectStore
from deepseek_ops.core.records import canonical_json

STARTER_SECONDS = 3.0
"""How long a submit waits for the other process that is starting the same attempt, before it does so as well."""
_TRIES = 8
_ASK_TRIES = 20
_DELETE_KEYS = 1000


class RemoteLauncher:
    """Runs jobs on an engine's machines.

    Args:
        store: Where the jobs' state is.
        engine: What starts their processes.
        shape: What a job gets of each machine, and the interpreter there.
        access: Variables that open the store on the machines (``store_environment``); the jobs get them as secrets.
    """

    def __init__(
        self, store: ObjectStore, engine: Engine, *, shape: NodeShape | None = None, access: Mapping[str, str]
    ) -> None:
        self._store = store
        self._engine = engine
        self._shape = shape or NodeShape()
        self._access = dict(access)
        self._reader = JobReader(store, engine)
        self._logs: dict[str, tuple[SharedLog, SharedLog]] = {}

    @property
    def engine(self) -> Engine:
        """What starts the jobs' processes."""
        return self._engine

    @property
    def store(self) -> ObjectStore:
        """Where the jobs' state is."""
        return self._store

    @property
    def reader(self) -> JobReader:
        """What can be read of the jobs."""
        return self._reader

    def submit(self, job: JobSpec, *, secrets: Mapping[str, str] | None = None) -> JobStatus:
        """Start the job unless one of its name runs or has succeeded; return its status either way.

        Raises SubmitRaceError, StoreUnavailableError, BudgetSpentError, and what the engine says against the job.
        """
        given = {**self._access, **(secrets or {})}
        for _ in range(_TRIES):
            control = self._reader.control(job.name)
            status = self._reader.status(job.name, control=control)
            if status is None:
                record = self._decide(job, None, random.token_hex(4))
            elif status.phase is JobPhase.RUNNING:
                return self._join(status, given)
            elif status.phase is JobPhase.SUCCEEDED:
                return status
            else:
                settled = self._reader.settle(status)
                if settled.phase is JobPhase.SUCCEEDED:
                    return settled
                record = self._decide(job, settled, self._reader.attempt(control, settled.attempt).life)
            if record is not None:
                self._start(record, given)
                return self._status(job.name)
        raise SubmitRaceError(job.name, _TRIES)

    def status(self, name: str) -> JobStatus | None:
        """Return the job's status, or None when no job of that name was ever submitted to this store."""
        return self._reader.status(name)

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
        if status.phase is JobPhase.LOST:
            raise JobLostError(name, status.reason, status.log)
        try:
            return RemoteResult.load(self._reader.get(JobKeys(name).result(status.attempt))).result
        except ObjectNotFoundError as error:
            raise JobLostError(name, f"its result is gone: {error}", status.log) from error

    def renew(self, name: str) -> None:
        """Renew the job's lease: somebody still wants it. Raises UnknownJobError."""
        control = self._known(name)
        if not control.has(control.newest, "ended.json"):
            self._renew(name, control)

    def stop(self, name: str, reason: str) -> None:
        """Ask the job to checkpoint and end; returns at once. Raises UnknownJobError.

        One that waits for machines is taken from the queue. The engine ends what does not obey: whoever looks at the
        job when its grace is long over has it cancelled.
        """
        status = self._status(name)
        if status.settled:
            return
        key = JobKeys(name).of(status.attempt, "stop.json")
        with suppress(ObjectExistsError):  # the first reason is the one that counts
            self._store.create(key, canonical_json(RemoteStop(reason=reason or "no reason given").dump()))
        control = self._reader.control(name)
        if control.newest == status.attempt and not control.has(status.attempt, "claim.json"):
            # No agent has begun that could obey; one that begins right now finds the stop in the store.
            self._engine.cancel(self._reader.attempt(control, status.attempt).engine_id, grace_seconds=0.0)

    def ask(self, name: str, verb: Literal["checkpoint", "rewind"], *, step: int | None = None, by: str = "") -> int:
        """Ask a running training for a checkpoint, or to go back to a healthy one; return the request's number.

        Raises UnknownJobError, RequestRaceError, and JobNotRunningError for a job that has ended: nobody would obey.
        """
        for _ in range(_ASK_TRIES):
            control = self._known(name)
            status = self._status(name, control)
            if status.settled:
                raise JobNotRunningError(name, str(status.phase))
            request = JobRequest(number=control.last_request + 1, verb=verb, step=step, by=by)
            key = JobKeys(name).of(status.attempt, f"requests/{request.number:06d}.json")
            with suppress(ObjectExistsError):
                self._store.create(key, canonical_json(request.dump()))
                return request.number
        raise RequestRaceError(name)

    def logs(self, name: str, offset: int = 0) -> tuple[str, int]:
        """Return what all nodes and attempts logged from byte ``offset`` on, and the offset to go on from.

        At most about 16 MiB a call. Lines of other nodes than the first begin with ``[node N]``.
        """
        data = b"".join(piece.data for piece in self._streams(name)[0].read(offset))
        return data.decode(errors="replace"), offset + len(data)

    def events(self, name: str, after: int = 0) -> builtins.list[dict[str, JsonValue]]:
        """Return the job's events after the first ``after``, in the order they were stored, over all attempts."""
        stream = self._streams(name)[1]
        found: builtins.list[dict[str, JsonValue]] = []
        while pieces := stream.read(after + len(found)):
            found += [_event(line) for piece in pieces for line in piece.data.splitlines()]
        return found

    def page(self, name: str) -> str:
        """Return the address of the newest attempt in the engine's own interface; empty where it has none."""
        control = self._reader.control(name)
        if not control.newest or not control.has(control.newest, STARTED):
            return ""
        try:
            body = self._store.get(JobKeys(name).of(control.newest, STARTED))
        except ObjectNotFoundError:  # retired since
            return ""
        return Started.load(json.loads(body)).url

    def list(self) -> builtins.list[JobStatus]:
        """Return every job in this store, by name: a listing and a look at each that has not ended before."""
        known = {state.id: state for state in self._engine.list()}
        statuses = [self._reader.status(name, known=known) for name in self.names()]
        return [status for status in statuses if status is not None]

    def names(self) -> builtins.list[str]:
        """Return the names of the jobs in this store."""
        return [info.key.removeprefix(NAMES) for info in self._store.list(NAMES)]

    def retire(self, name: str) -> None:
        """Remove everything of a settled job from store and engine. A job that is gone is no error.

        Raises JobNotSettledError.
        """
        keys, control = JobKeys(name), self._reader.control(name)
        status = self._reader.status(name, control=control)
        if status is not None and not status.settled:
            raise JobNotSettledError(name)
        if status is not None:
            self._reader.settle(status)  # so that an agent the engine has forgotten gives up
        for number in control.attempts:
            with suppress(ObjectNotFoundError):
                self._engine.retire(self._reader.attempt(control, number).engine_id)
        for prefix in (keys.log, keys.events, keys.results, keys.control):
            self._remove(prefix)
        self._store.delete([f"{NAMES}{name}"])
        self._logs.pop(name, None)

    def prewarm(self) -> None:
        """Do nothing: machines that wait for jobs cost money, and engines decide about their own."""

    def _decide(self, job: JobSpec, before: JobStatus | None, life: str) -> RemoteAttempt | None:
        """Return the new attempt if it was this process that created it, None when another was first."""
        number = before.attempt + 1 if before is not None else 1
        spent = before.device_seconds if before is not None else 0.0
        record = RemoteAttempt(
            spec=within_budget(job, spent, num_ranks=ranks_per_node(job) * job.num_nodes),
            attempt=number,
            engine_id=new_engine_id(job.name, number, self._store.uri),
            life=life,
            device_seconds=spent,
        )
        with suppress(ObjectExistsError):
            self._store.create(f"{NAMES}{job.name}", b"{}")
        try:
            self._store.create(JobKeys(job.name).attempt(number), canonical_json(record.dump()))
        except ObjectExistsError:
            # Perhaps by ourselves, in a request whose answer was lost.
            stored = RemoteAttempt.load(self._reader.get(JobKeys(job.name).attempt(number)))
            return record if stored == record else None
        return record

    def _join(self, status: JobStatus, secrets: Mapping[str, str]) -> JobStatus:
        """Renew the lease of a job that runs; finish its start where who began it has not."""
        name, attempt = status.name, status.attempt
        control = self._reader.control(name)
        deadline = time.monotonic() + STARTER_SECONDS
        while not self._is_started(control, attempt) and time.monotonic() < deadline:
            time.sleep(STARTER_SECONDS / 10)
            control = self._reader.control(name)
        if not self._is_started(control, attempt):
            self._start(self._reader.attempt(control, attempt), secrets)
        else:
            self._renew(name, control)
        return self._status(name)

    def _is_started(self, control: Control, attempt: int) -> bool:
        return control.newest != attempt or control.has(attempt, STARTED) or control.has(attempt, "ended.json")

    def _start(self, record: RemoteAttempt, secrets: Mapping[str, str]) -> None:
        """Have the engine start the attempt and note that it did; doing so twice finds the first one."""
        try:
            state = self._engine.start(engine_job(record, self._shape), secrets=secrets)
        except PermanentError as error:
            status = JobStatus(
                name=record.spec.name,
                phase=JobPhase.FAILED,
                reason=f"the engine refused it: {error}",
                attempt=record.attempt,
                device_seconds=record.device_seconds,
            )
            self._reader.settle(status)
            raise
        self._note_started(record, state)

    def _note_started(self, record: RemoteAttempt, state: EngineState) -> None:
        started = Started(engine_id=record.engine_id, handle=state.handle, url=state.url)
        key = JobKeys(record.spec.name).of(record.attempt, STARTED)
        with suppress(ObjectExistsError):
            self._store.create(key, canonical_json(started.dump()))

    def _renew(self, name: str, control: Control) -> None:
        """Store a key that was not there before; the agent compares names for change, never times."""
        keys, attempt = JobKeys(name), control.newest
        old = [keys.of(attempt, lease) for lease in control.below(attempt, "lease/")[:-1]]
        key = keys.of(attempt, f"lease/{time.time_ns():020d}-{random.token_hex(4)}")
        self._store.create(key, b"{}")
        if old:  # nobody has begun to run it who would have removed them
            self._store.delete(old)

    def _streams(self, name: str) -> tuple[SharedLog, SharedLog]:
        keys = JobKeys(name)
        if name not in self._logs:
            self._logs[name] = (SharedLog(self._store, keys.log), SharedLog(self._store, keys.events, lines=True))
        return self._logs[name]

    def _known(self, name: str) -> Control:
        control = self._reader.control(name)
        if not control.newest:
            raise UnknownJobError(name, self._store.uri)
        return control

    def _status(self, name: str, control: Control | None = None) -> JobStatus:
        status = self._reader.status(name, control=control)
        if status is None:
            raise UnknownJobError(name, self._store.uri)
        return status

    def _remove(self, prefix: str) -> None:
        while keys := [info.key for info in self._store.list(prefix, limit=_DELETE_KEYS)]:
            self._store.delete(keys)


def _event(line: bytes) -> dict[str, JsonValue]:
    try:
        body = json.loads(line)
    except ValueError:
        body = None
    return body if isinstance(body, dict) else {"kind": "damaged"}
