"""A trigger that follows a job outside Airflow, keeps its lease alive, and stops it when a person kills the task."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from deepseek_ops.airflow.hooks import FactsHook, LauncherHook
from deepseek_ops.airflow.triggers.following import JobFollower
from deepseek_ops.airflow.triggers.watching import pause_after
from deepseek_ops.core.errors import PermanentError

if TYPE_CHECKING:
    from deepseek_ops.core.jobs import JobStatus
    from deepseek_ops.core.ports import Launcher

log = logging.getLogger(__name__)


TURN_SECONDS = 5.0
"""Between two looks whether a newer push took the run's place."""


@dataclass(slots=True)
class _Turn:
    next_look: float = 0.0
    given_up: int = 0
    """Attempt of the job that was stopped."""


class TrainingJobTrigger(BaseTrigger):
    """Wait for a job to settle; the event is its :class:`~deepseek_ops.core.jobs.JobStatus` as JSON.

    A triggerer that restarts or hands the trigger over leaves the job running. A person who clears the task or marks
    it failed or successful while it waits stops the job.

    :param job_name: name of the submitted job.
    :param launcher_conn_id: connection of the engine that runs it.
    :param poll_interval: seconds between two looks; each renews the job's lease.
    :param deadline: seconds since the epoch after which the job is stopped; None has none. Airflow's own
        ``execution_timeout`` does not count while a task is deferred.
    :param limit_seconds: where given, the deadline is at least so long after the job got its machines: the time it
        waited for them in its engine's queue does not count.
    :param facts_conn_id: connection of the facts database.
    :param lane: key of the lane of the run's branch: a newer push that takes the run's place stops the job.
    :param run: id of the run; empty has no turn.
    """

    def __init__(
        self,
        *,
        job_name: str,
        launcher_conn_id: str = LauncherHook.default_conn_name,
        poll_interval: float = 10.0,
        deadline: float | None = None,
        facts_conn_id: str = FactsHook.default_conn_name,
        lane: str = "",
        run: str = "",
        limit_seconds: float | None = None,
    ) -> None:
        super().__init__()
        self.facts_conn_id = facts_conn_id
        self.lane = lane
        # Not called ``run``: that is the trigger's own method.
        self.run_key = run
        self._turn = _Turn()
        self._follower: JobFollower | None = None
        self.job_name = job_name
        self.launcher_conn_id = launcher_conn_id
        self.poll_interval = poll_interval
        self.deadline = deadline
        self.limit_seconds = limit_seconds
        self._begun = math.inf
        """When the job was first seen to have its machines, in seconds since the epoch."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            "deepseek_ops.airflow.triggers.jobs.TrainingJobTrigger",
            {
                "job_name": self.job_name,
                "launcher_conn_id": self.launcher_conn_id,
                "poll_interval": self.poll_interval,
                "deadline": self.deadline,
                "facts_conn_id": self.facts_conn_id,
                "lane": self.lane,
                "run": self.run_key,
                "limit_seconds": self.limit_seconds,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        launcher: Launcher | None = None
        failures = 0
        while True:
            try:
                if launcher is None:
                    launcher = await asyncio.to_thread(_open, self.launcher_conn_id)
                status = await asyncio.to_thread(self._look, launcher)
            except PermanentError:
                raise  # no connection, no rights: the task fails and says so; the job's lease runs out by itself
            except Exception as error:  # noqa: BLE001  (an engine that does not answer for a while is no lost job)
                failures += 1
                launcher = None
                wait = pause_after(failures, self.poll_interval)
                log.warning("cannot ask for job %s, next in %.0f s: %s", self.job_name, wait, error)
                await asyncio.sleep(wait)
                continue
            failures = 0
            if status.settled:
                yield TriggerEvent(status.dump())
                return
            await asyncio.sleep(self.poll_interval)

    async def on_kill(self) -> None:
        """Stop the job: a person ended the task that waits for it."""
        await asyncio.to_thread(self._stop, "its task was stopped in Airflow while it waited")

    def _look(self, launcher: Launcher) -> JobStatus:
        from deepseek_ops.core.jobs import JobPhase, JobStatus

        status = launcher.status(self.job_name)
        if status is None:
            return JobStatus(
                name=self.job_name, phase=JobPhase.LOST, reason="the engine does not know the job any more"
            )
        self._follow(launcher, status)
        if not status.settled:
            launcher.renew(self.job_name)
            reason = self._overdue(status)
            if reason:
                launcher.stop(self.job_name, reason)
            return self._yield(launcher, status)
        return status

    def _overdue(self, status: JobStatus) -> str:
        """Return why the job has to end by now; empty where it has not."""
        now = time.time()
        if status.wall_seconds:  # the smallest: a machine that fell silent tells an old figure for ever
            self._begun = min(self._begun, now - status.wall_seconds)
        if self.deadline is None or now < self.deadline:
            return ""
        if self.limit_seconds is None:
            return "its deadline passed"
        if now < self._begun + self.limit_seconds:  # not yet, or its engine has not begun with it
            return ""
        return f"its task's execution_timeout of {self.limit_seconds:g} s passed; clear the task to go on"

    def _follow(self, launcher: Launcher, status: JobStatus) -> None:
        if self._follower is None:
            self._follower = JobFollower(
                launcher,
                self.job_name,
                self.run_key,
                facts=lambda: FactsHook(self.facts_conn_id).facts,
                note=self._note,
            )
        self._follower.launcher = launcher
        self._follower.look(status)

    def _note(self, progress: dict[str, Any]) -> None:
        """Leave the progress as the task's XCom ``progress``: a triggerer may not write the task state store."""
        ti = self.task_instance
        if ti is None:
            return
        from airflow.sdk.execution_time.xcom import XCom

        index = -1 if ti.map_index is None else ti.map_index
        try:
            XCom.set(
                key="progress", value=progress, dag_id=ti.dag_id, task_id=ti.task_id, run_id=ti.run_id, map_index=index
            )
        except Exception as error:  # noqa: BLE001  (an API that is away for a while ends no wait)
            log.warning("the progress of job %s was not noted: %s", self.job_name, error)

    def _yield(self, launcher: Launcher, status: JobStatus) -> JobStatus:
        """Stop the job if a newer push took the run's place; an attempt that another run started since is its own."""
        from deepseek_ops.core.jobs import JobPhase
        from deepseek_ops.pipeline.policy import superseded_reason

        turn = self._turn
        if not self.run_key or time.monotonic() < turn.next_look:
            return status
        turn.next_look = time.monotonic() + TURN_SECONDS
        reason = superseded_reason(FactsHook(self.facts_conn_id).facts, self.lane, self.run_key)
        if reason and turn.given_up and status.attempt > turn.given_up:
            return status.evolve(phase=JobPhase.STOPPED, reason=reason)
        if reason and not turn.given_up:
            log.warning("stopping job %s: %s", self.job_name, reason)
            launcher.stop(self.job_name, reason)
            turn.given_up = status.attempt
        return status

    def _stop(self, reason: str) -> None:
        _open(self.launcher_conn_id).stop(self.job_name, reason)


def _open(launcher_conn_id: str) -> Launcher:
    return LauncherHook(launcher_conn_id).launcher
