"""What every operator of ours shares: connections, and following a job that runs outside the task's process."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, Context
from airflow.sdk.exceptions import AirflowSkipException
from pydantic import JsonValue

from deepseek_ops.airflow.hooks import FactsHook, GitRemoteHook, LauncherHook, StoreHook
from deepseek_ops.airflow.operators.environments import note_what_ran, submit
from deepseek_ops.core.errors import JobFailedError, JobLostError, JobPreemptedError, JobStoppedError

if TYPE_CHECKING:
    from deepseek_ops.core.config import PipelineFile
    from deepseek_ops.core.jobs import JobSpec, JobStatus
    from deepseek_ops.pipeline.runs import RunPlan


def keep_result(context: Any, result: Any = None) -> None:
    """Keep on the running operator what it returned: OpenLineage asks it in a fork, where XCom must not be read."""
    context["task"]._returned = result


class DeepSeekOpsOperator(BaseOperator):
    """Base of our operators: connection ids, and the ports behind them, opened when the task runs.

    :param store_conn_id: connection of the object store (templated).
    :param facts_conn_id: connection of the facts database (templated).
    :param launcher_conn_id: connection of the engine that runs jobs (templated).
    :param git_conn_id: connection of the model repository (templated).
    """

    template_fields: Sequence[str] = ("store_conn_id", "facts_conn_id", "launcher_conn_id", "git_conn_id")

    def __init__(
        self,
        *,
        store_conn_id: str = "deepseek_ops_store",
        facts_conn_id: str = "deepseek_ops_facts",
        launcher_conn_id: str = "deepseek_ops_launcher",
        git_conn_id: str = "deepseek_ops_git",
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"post_execute": keep_result, **kwargs})
        self.store_conn_id = store_conn_id
        self.facts_conn_id = facts_conn_id
        self.launcher_conn_id = launcher_conn_id
        self.git_conn_id = git_conn_id

    @cached_property
    def store_hook(self) -> StoreHook:
        return StoreHook(self.store_conn_id)

    @cached_property
    def facts(self) -> Any:
        return FactsHook(self.facts_conn_id).facts

    @cached_property
    def launcher_hook(self) -> LauncherHook:
        return LauncherHook(self.launcher_conn_id)

    @property
    def launcher(self) -> Any:
        return self.launcher_hook.launcher

    @cached_property
    def git(self) -> Any:
        return GitRemoteHook(self.git_conn_id).remote

    def pre_execute(self, context: Context) -> None:
        super().pre_execute(context)
        if reason := self.superseded(context):
            raise AirflowSkipException(reason)

    def superseded(self, context: Context) -> str:
        """Return why a newer push took the place of this task's run, or an empty text."""
        run = getattr(self, "run", None)
        if not isinstance(run, Mapping):  # a task of no run of a commit, or before its plan
            return ""
        from deepseek_ops.core.records import GitRef
        from deepseek_ops.pipeline.policy import lane_key, superseded_reason

        source = GitRef.load(as_object(as_object(run["manifest"])["source"]))
        return superseded_reason(self.facts, lane_key(source), str(context["run_id"]))

    def conclude(self, job: JobSpec, status: JobStatus, context: Context) -> dict[str, JsonValue]:
        """Account a settled job and return its result. Raises the error that its end means."""
        from deepseek_ops.core.jobs import JobCause, JobPhase
        from deepseek_ops.pipeline.accounts import account_job

        account_job(self.facts, status, run=str(context["run_id"]), device=self.launcher_hook.device)
        note_what_ran(self, job, status, run=str(context["run_id"]))
        if status.phase is JobPhase.SUCCEEDED:
            result: dict[str, JsonValue] = self.launcher.result(job.name)
            return result
        if status.phase is JobPhase.FAILED:
            raise JobFailedError(job.name, status.reason, status.log)
        if status.phase is JobPhase.STOPPED:
            self._yield_or_go_on(job, status, context)
            if status.cause is JobCause.LEASE_EXPIRED:  # nobody looked for a while; this task still wants it
                raise JobLostError(job.name, status.reason, status.log)
            raise JobStoppedError(job.name, status.reason)
        if status.taken_away:
            raise JobPreemptedError(job.name, status.reason, status.log)
        raise JobLostError(job.name, status.reason, status.log)

    def _yield_or_go_on(self, job: JobSpec, status: JobStatus, context: Context) -> None:
        """A job that was stopped for a superseded run ends that run's task; another run that needs it goes on."""
        from deepseek_ops.pipeline.policy import SUPERSEDED

        if SUPERSEDED not in status.reason:
            return
        if reason := self.superseded(context):
            raise AirflowSkipException(reason)
        problem = f"it was stopped for another run, which was {status.reason}; this run needs it still"
        raise JobLostError(job.name, problem, status.log)

    def note_reuse(self, job: JobSpec, context: Context) -> None:
        """Note that this run stands on what an equal job returned, and so on the environment it ran in."""
        from deepseek_ops.pipeline.environment_records import link_environment

        link_environment(self.facts, job=job.name, run=str(context["run_id"]))

    def get_openlineage_facets_on_complete(self, _task_instance: Any) -> Any:
        """Return what the task read and wrote; called by the OpenLineage provider, where it is installed, alone."""
        from deepseek_ops.airflow.openlineage import lineage_of_task

        return lineage_of_task(self, getattr(self, "_returned", None))

    def note(self, context: Context, text: str) -> None:
        """Log the text and leave it as the XCom ``note``, where the UI shows it: no task may write its run's note."""
        self.log.info("%s", text)
        ti: Any = context.get("ti")
        if ti is not None:
            ti.xcom_push(key="note", value=text)

    def config(self, run: RunPlan) -> PipelineFile:
        """Return the pipeline file of the run's commit, with the run's overrides."""
        from deepseek_ops.pipeline.runs import config_of

        return config_of(self.store_hook.blobs, run.manifest)


class JobOperator(DeepSeekOpsOperator):
    """Base of operators whose work is one job: reuse its remembered result, or submit, follow and remember it.

    Subclasses say which job (``job``) and what its result means (``finish``). The job is found by its name, so a
    retry follows the job it finds; a person who kills the task stops the job, a lost worker does not.
    """

    poll_seconds = 0.5
    turn_seconds = 5.0
    """Between two looks whether a newer push took the run's place."""

    def job(self, context: Context) -> JobSpec:
        raise NotImplementedError

    def finish(self, result: dict[str, JsonValue], *, reused: bool, context: Context) -> Any:
        raise NotImplementedError

    def watch(self, job: JobSpec, status: JobStatus) -> None:
        """Look at the job once per poll; subclasses may stop it."""

    def execute(self, context: Context) -> Any:
        from deepseek_ops.pipeline.once import remember, remembered

        self._stop = threading.Event()
        job = self.job(context)
        known = remembered(self.facts, job)
        if known is not None:
            self.log.info("reusing the result of job %s: its inputs are the same", job.name)
            self.note_reuse(job, context)
            return self.finish(known, reused=True, context=context)
        result = self.follow(job, context)
        remember(self.facts, job, result, run=str(context["run_id"]))
        return self.finish(result, reused=False, context=context)

    def on_kill(self) -> None:
        # Called from a signal handler: nothing but the flag is safe here; the loop below does the rest.
        self._stop.set()

    def follow(self, job: JobSpec, context: Context) -> dict[str, JsonValue]:
        """Submit the job if it is not there, and return its result when it has succeeded.

        Raises JobLostError (try again: it resumes), JobFailedError or JobStoppedError.
        """
        from deepseek_ops.adapters.environments.errors import BuildStoppedError

        try:
            status = submit(self, job, stopped=self._stop.is_set)
        except BuildStoppedError:
            self._raise_if_worker_leaves(job, context)
            raise
        self.log.info("following job %s (attempt %d)", job.name, status.attempt)
        offset, self._given_up, self._next_turn = 0, 0, 0.0
        while not status.settled:
            offset = self._copy_log(job.name, offset)
            if self._stop.wait(self.poll_seconds):
                self._leave(job, context)
            self._give_up_if_superseded(job, status, context)
            self.launcher.renew(job.name)
            status = self.launcher.status(job.name) or status
            self.watch(job, status)
        self._copy_log(job.name, offset)
        return self.conclude(job, status, context)

    def _copy_log(self, name: str, offset: int) -> int:
        text, offset = self.launcher.logs(name, offset)
        for line in text.splitlines():
            self.log.info("%s", line)
        return int(offset)

    def _give_up_if_superseded(self, job: JobSpec, status: JobStatus, context: Context) -> None:
        """Stop the attempt that was followed so far; one that another run has started since is that run's."""
        if time.monotonic() < self._next_turn:
            return
        self._next_turn = time.monotonic() + self.turn_seconds
        reason = self.superseded(context)
        if reason and self._given_up and status.attempt > self._given_up:
            raise AirflowSkipException(reason)
        if reason and not self._given_up:
            self.log.warning("stopping job %s: %s", job.name, reason)
            self.launcher.stop(job.name, reason)
            self._given_up = status.attempt

    def _leave(self, job: JobSpec, context: Context) -> None:
        """The task is being ended: stop the job if a person did it, leave it running if the worker goes away."""
        self._raise_if_worker_leaves(job, context)
        self.launcher.stop(job.name, "its task was stopped in Airflow")
        raise JobStoppedError(job.name, "its task was stopped in Airflow")

    def _raise_if_worker_leaves(self, job: JobSpec, context: Context) -> None:
        ti: Any = context["ti"]
        index = None if ti.map_index < 0 else ti.map_index
        states = ti.get_task_states(dag_id=ti.dag_id, map_index=index, task_ids=[ti.task_id], run_ids=[ti.run_id])
        if "running" in str(states):
            raise JobLostError(job.name, "the worker is shutting down; the job goes on and will be found", "")


def as_object(value: object) -> Mapping[str, JsonValue]:
    """Return a templated argument as the JSON object it must be. Raises TypeError naming what it is."""
    if not isinstance(value, Mapping):
        raise TypeError(f"expected a JSON object, got {type(value).__name__}: {value!r:.200}")
    return value
