"""The supervisor: one small process beside every job, so that no job outlives its purpose and none dies unnoticed.

It leads a session of its own, so the end of the Airflow task that started it, of its worker, or of the task's process
group does not touch it. Below it runs one worker process that does the job (or forks the ranks that do). It

- passes a stop on (SIGTERM, or ``stop.json``): SIGTERM, ``grace_seconds``, then SIGKILL for the whole tree;
- stops a job that ran too long or whose lease nobody renewed;
- reaps every orphan below it, and leaves no process behind however the job ends; if it is killed itself, the kernel
  kills the worker, and with it the ranks (``PR_SET_PDEATHSIG``), and the launcher kills what they had started;
- writes how the attempt ended, unless a newer attempt has begun.

It imports nothing heavy and has one thread, so it stays alive where the job runs out of memory, and it may fork.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from deepseek_ops.adapters.local_launcher import processes
from deepseek_ops.adapters.local_launcher.folder import (
    Attempt,
    JobFolder,
    RankGroup,
    StopRequest,
    Supervisor,
    write_json,
)
from deepseek_ops.core.errors import DeepSeekOpsError, InvalidRecordError, PermanentError
from deepseek_ops.core.jobs import JobCause, JobPhase, JobSpec, JobStatus
from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.ending import judge
from deepseek_ops.jobs.entry import (
    Outcome,
    OutcomeSlot,
    call,
    leave,
    limit_threads,
    prepare_process,
    silent_ending,
    stop_on_signal,
)
from deepseek_ops.jobs.leases import over_at, patience
from deepseek_ops.jobs.memory_kills import MemoryKills

POLL_SECONDS = 0.5
"""How often stop file, lease and limits are looked at; signals are handled at once."""
HEARTBEAT_SECONDS = 5.0
RESERVE_BYTES = 64 << 10
LAST_WORDS_SECONDS = 5.0
"""What the end of an attempt takes after its grace."""
SETTLE_TRIES = 30
"""How often, a second apart, the end is written again on a full disk before the job counts as lost."""
_SIGNALS = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

GroupRunner = Callable[[JobFolder, JobSpec, int], Outcome]
"""Runs the ranks of an attempt of a train job to their end, in the worker process below the supervisor."""


@dataclass(eq=False)
class AttemptTakenError(PermanentError):
    """An attempt of a job was started before."""

    job: str
    attempt: int

    def __str__(self) -> str:
        return f"attempt {self.attempt} of job {self.job} was started before; submit the job again for a new attempt."


class JobSupervisor:
    """One attempt of one job, from its start to the status that says how it ended."""

    def __init__(
        self, files: JobFolder, spec: JobSpec, attempt: Attempt, *, run_ranks: GroupRunner | None = None
    ) -> None:
        self._files = files
        self._spec = spec
        self._attempt = attempt
        self._run_ranks = run_ranks
        self._worker = 0
        self._stop: StopRequest | None = None
        self._began = self._beat = self._wanted = time.monotonic()
        self._lease_mtime = 0.0
        self._kill_at: float | None = None
        self._grace_used_up = False
        self._superseded = False
        self._slot = OutcomeSlot()
        self._kills = MemoryKills()

    def run(self, started: Callable[[], None]) -> None:
        """Run the attempt to its end. ``started`` is called as soon as others can see that it runs."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        processes.become_subreaper()
        self._record()
        started()
        try:
            self._start_worker()
            status = self._watch()
        finally:
            processes.kill_descendants()
        if not self._superseded:
            self._settle(status)

    def _record(self) -> None:
        me = processes.process(os.getpid())
        record = Supervisor(
            attempt=self._attempt.attempt,
            pid=os.getpid(),
            start_ticks=me.start_ticks if me else 0,
            machine=processes.machine(),
            started_at=time.time(),
        )
        (self._files.path / "reserve").write_bytes(b"." * RESERVE_BYTES)
        self._files.write("supervisor.json", record)
        self._event("started", pid=record.pid, ranks=self._spec.num_ranks)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._say(f"--- attempt {record.attempt} of {self._spec.name}, {now}, pid {record.pid} ---")

    def _start_worker(self) -> None:
        parent = os.getpid()
        self._worker = os.fork()
        if self._worker == 0:
            try:
                processes.die_with_parent(parent)
                signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
                leave(work(self._files, self._spec, self._attempt.attempt, self._slot, run_ranks=self._run_ranks))
            except BaseException:  # noqa: BLE001  (it ends in the log and in the exit status)
                traceback.print_exc()
            finally:
                leave(1)

    def _watch(self) -> int:
        """Return the wait status of the worker when it has ended, of itself or by our hand."""
        while True:
            status = self._reap()
            if status is not None:
                return status
            self._look_around()
            arrived = signal.sigtimedwait(_SIGNALS, POLL_SECONDS)
            if arrived is not None and arrived.si_signo in (signal.SIGTERM, signal.SIGINT):
                told = f"the supervisor got {signal.Signals(arrived.si_signo).name}"
                self._request_stop("signal", told, JobCause.PREEMPTED)  # as a machine that shuts down says it

    def _reap(self) -> int | None:
        """Reap everything that has ended, orphans included; return the worker's wait status if it is among them."""
        return dict(processes.reaped()).get(self._worker)

    def _look_around(self) -> None:
        now = time.monotonic()
        if self._kill_at is not None and (now >= self._kill_at or now >= self._lease_end(now)):
            self._grace_used_up = True
            os.kill(self._worker, signal.SIGKILL)  # its ranks die with it; the rest when the watch has ended
            return
        if now - self._beat >= HEARTBEAT_SECONDS:
            self._beat = now
            self._heartbeat()
        if self._kill_at is None:
            self._check_limits(now)
            self._begin_stop(now)

    def _heartbeat(self) -> None:
        newest = self._files.attempt()
        if newest is None or newest.attempt != self._attempt.attempt:
            self._superseded = True  # the folder was retired, or a newer attempt runs: end without a word
            self._kill_at = 0.0
            return
        os.utime(self._files.path / "supervisor.json")

    def _check_limits(self, now: float) -> None:
        if now - self._began > self._spec.timeout_seconds:
            of = "" if self._spec.budget_seconds is None else f", budget_seconds={self._spec.budget_seconds:g} in all"
            self._request_stop("timeout", f"ran longer than timeout_seconds={self._spec.timeout_seconds:g}{of}")
        limit = patience(self._spec.lease_seconds, self._spec.grace_seconds, last_words=LAST_WORDS_SECONDS)
        if self._spec.lease_seconds and now - self._renewed(now) > limit:
            reason = f"lease expired: not renewed for {limit:g} seconds"
            self._request_stop("stop", reason, JobCause.LEASE_EXPIRED)

    def _renewed(self, now: float) -> float:
        """Return when the lease was renewed last, on the monotonic clock of ``now``."""
        stamp = self._files.lease.stat().st_mtime if self._files.lease.exists() else 0.0
        if stamp != self._lease_mtime:  # compared for change only: clocks of two machines may differ
            self._lease_mtime, self._wanted = stamp, now
        return self._wanted

    def _lease_end(self, now: float) -> float:
        return over_at(self._renewed(now), self._spec.lease_seconds, last_words=LAST_WORDS_SECONDS)

    def _begin_stop(self, now: float) -> None:
        self._stop = self._files.stop_request(self._attempt.attempt) or self._stop
        if self._stop is not None:
            self._event("stopping", reason=self._stop.reason, grace_seconds=self._spec.grace_seconds)
            os.kill(self._worker, signal.SIGTERM)
            self._kill_at = now + self._spec.grace_seconds

    def _request_stop(
        self, cause: Literal["stop", "timeout", "signal"], reason: str, counts_as: JobCause | None = None
    ) -> None:
        request = StopRequest(attempt=self._attempt.attempt, reason=reason, cause=cause, counts_as=counts_as)
        self._stop = self._stop or request
        try:
            self._files.request_stop(self._stop)  # where the job's code reads the reason
        except DeepSeekOpsError as error:
            self._say(str(error))  # a full disk; the signal reaches the code without it

    def _settle(self, wait_status: int) -> None:
        """Write how the attempt ended: nobody else knows. The reserve makes room for that on a full disk."""
        starved = False if self._grace_used_up else self._kills.seen()  # our own SIGKILL is none of the kernel's
        outcome = self._slot.take() or silent_ending(wait_status, who="the job", starved=starved)
        status = self._status(outcome, wait_status)
        (self._files.path / "reserve").unlink(missing_ok=True)
        said = status.dump()
        ending = {name: said.get(name) for name in ("phase", "reason", "cause", "exit_status")}
        self._event("ended", **ending, error=outcome.error, restarts=status.restarts)
        for _ in range(SETTLE_TRIES):
            try:
                self._write_end(status, outcome)
            except DeepSeekOpsError as error:
                self._say(str(error))
                time.sleep(1)
            else:
                return

    def _write_end(self, status: JobStatus, outcome: Outcome) -> None:
        if self._files.attempt() is None:
            return  # retired: taking the lock would make the folder anew
        with self._files.locked():
            newest = self._files.attempt()
            if newest is None or newest.attempt != self._attempt.attempt:
                return
            if status.phase is JobPhase.SUCCEEDED and outcome.result is not None:
                write_json(self._files.path / "result.json", outcome.result)
            self._files.write("status.json", status)

    def _status(self, outcome: Outcome, wait_status: int) -> JobStatus:
        request = self._files.stop_request(self._attempt.attempt) or self._stop
        grace = self._spec.grace_seconds if self._grace_used_up else None
        verdict = judge(outcome, request, killed_after=grace)
        group = self._files.read("ranks.json", RankGroup)
        restarted = group.restarts if group is not None and group.attempt == self._attempt.attempt else 0
        wall = time.monotonic() - self._began
        return JobStatus(
            name=self._spec.name,
            phase=verdict.phase,
            reason=verdict.reason,
            cause=verdict.cause,
            exit_status=os.waitstatus_to_exitcode(wait_status),
            attempt=self._attempt.attempt,
            restarts=max(outcome.restarts, restarted),
            wall_seconds=wall,
            device_seconds=self._attempt.device_seconds + wall * self._spec.num_ranks,
            pid=os.getpid(),
            log=str(self._files.log),
        )

    def _event(self, kind: str, **fields: object) -> None:
        try:
            self._files.append_event(kind, self._attempt.attempt, fields)
        except DeepSeekOpsError as error:
            self._say(str(error))

    def _say(self, line: str) -> None:
        """Write to the job's log if there is room: a supervisor that fails because it cannot talk helps nobody."""
        with contextlib.suppress(OSError):
            print(line, flush=True)  # noqa: T201


def supervisor_of(files: JobFolder, *, run_ranks: GroupRunner | None = None) -> JobSupervisor:
    """Return the supervisor of the newest attempt and claim the attempt for it. Raises AttemptTakenError.

    ``run_ranks`` runs the ranks of a train job in place of ``RankGroupRunner``: on several machines, say.

    An attempt is run once. Of two processes that were asked to (a host that answered too late, and the cold start
    that did not wait for it) the second is turned away here.
    """
    spec, attempt = files.read("spec.json", JobSpec), files.attempt()
    if spec is None or attempt is None:
        raise InvalidRecordError("JobSpec", f"{files.path} holds no whole spec.json and attempt.json")
    try:
        (files.claims / str(attempt.attempt)).touch(mode=0o600, exist_ok=False)
    except FileExistsError as error:
        raise AttemptTakenError(spec.name, attempt.attempt) from error
    return JobSupervisor(files, spec, attempt, run_ranks=run_ranks)


def work(
    files: JobFolder, spec: JobSpec, attempt: int, slot: OutcomeSlot, *, run_ranks: GroupRunner | None = None
) -> int:
    """Do the job in this process and below it; return the exit status after leaving the outcome."""
    prepare_process(files, spec)
    if spec.kind == "train" and run_ranks is not None:
        ending = run_ranks(files, spec, attempt)
    elif spec.kind == "train":
        from deepseek_ops.jobs.preload import preload
        from deepseek_ops.jobs.ranks import RankGroupRunner

        preload()
        ending = RankGroupRunner(files, spec, attempt).run()
    else:
        context = JobContext(spec, files.path, attempt=attempt)
        stop_on_signal(context)
        limit_threads(default=len(os.sched_getaffinity(0)))
        ending = call(context)
    slot.write(ending)
    return ending.exit_status
