"""Training: the plan, and the job that carries it out on any engine."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import Context, ResumableJobMixin
from pydantic import JsonValue

from deepseek_ops.airflow.links import EngineLink, TrainingRunLink, push_links
from deepseek_ops.airflow.operators.base import DeepSeekOpsOperator, as_object
from deepseek_ops.airflow.operators.engines import launcher_for
from deepseek_ops.airflow.operators.environments import submit
from deepseek_ops.airflow.triggers.jobs import TrainingJobTrigger

if TYPE_CHECKING:
    from deepseek_ops.airflow.hooks import LauncherHook
    from deepseek_ops.core.jobs import JobSpec, JobStatus
    from deepseek_ops.training.losses import Losses

_LOSSES, _PROGRESS = "lost_attempts", "progress"
"""Keys of the task state store: they outlive a try, and are gone when somebody clears the task's run."""
_OLD_DIVISOR, _OLD_LOSSES = "micro_batch_divisor", "losses"
"""The same of releases that kept two numbers."""


def note_end(operator: DeepSeekOpsOperator, job: JobSpec, status: JobStatus) -> None:
    """Keep what a settled attempt, of a training or of a trial, met on the machines behind the operator's engine."""
    from deepseek_ops.core.jobs import JobCause
    from deepseek_ops.pipeline.interruptions import note_attempt

    lost_machines = status.cause is not JobCause.OUT_OF_MEMORY  # that is the training's own fault, and no rate
    note_attempt(operator.facts, job, status, where=operator.launcher_hook.conn_id, lost_machines=lost_machines)


def kept_losses(context: Any) -> Losses:
    """Return what the task's attempts have lost so far; none below Airflow 3.3, where every try begins anew."""
    from deepseek_ops.training.losses import Losses

    store = context.get("task_state_store")
    if store is None:
        return Losses()
    known = store.get(_LOSSES)
    if isinstance(known, dict):
        return Losses.load(known)
    others, divisor = store.get(_OLD_LOSSES), store.get(_OLD_DIVISOR)
    return Losses(others=others if isinstance(others, int) else 0, divisor=divisor if isinstance(divisor, int) else 1)


def _keep(context: Any, key: str, value: JsonValue) -> None:
    store = context.get("task_state_store")
    if store is not None:
        store.set(key, value)


class PlanTrainingOperator(DeepSeekOpsOperator):
    """Return the training that the run's commit, data and best trial ask for, everything resolved.

    :param run: what ``PlanRunOperator`` returned (templated).
    :param dataset: what ``PrepareDatasetOperator`` returned (templated).
    :param trials: what the trials returned; none when nothing is searched (templated).
    :return: a :class:`~deepseek_ops.core.records.TrainingPlan` as JSON.
    """

    template_fields: Sequence[str] = (*DeepSeekOpsOperator.template_fields, "run", "dataset", "trials")

    def __init__(self, *, run: Any, dataset: Any, trials: Any = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run = run
        self.dataset = dataset
        self.trials = trials

    def execute(self, context: Context) -> dict[str, JsonValue]:
        from deepseek_ops.core.records import DatasetVersion, Trial
        from deepseek_ops.pipeline.lineage_evidence import keep_evidence
        from deepseek_ops.pipeline.preflight import checked_fit, preflight_text
        from deepseek_ops.pipeline.runs import RunPlan
        from deepseek_ops.pipeline.sweeps import best_trial, study_of
        from deepseek_ops.pipeline.trainings import model_config, training_plan

        run = RunPlan.load(as_object(self.run))
        dataset = DatasetVersion.load(as_object(self.dataset))
        config = self.config(run)
        model = model_config(self.store_hook.blobs, config, run)
        values: dict[str, JsonValue] = {}
        winner = None
        if config.training.searched:
            study = study_of(config, run, dataset, model)
            winner = best_trial(config, study, [Trial.load(trial) for trial in self.trials or () if trial])
            self.log.info("best trial of %s: #%d %s = %s", study.name, winner.number, winner.values, winner.objective)
            values = winner.values
        plan = training_plan(
            config,
            run,
            dataset=dataset,
            model=model,
            values=values,
            datasets=self.store_hook.datasets,
            blobs=self.store_hook.blobs,
        )
        report = checked_fit(config, run, plan, device=launcher_for(self.launcher_conn_id, config).device)
        self.log.info("%s", "preflight: " + (preflight_text(report) if report else "nothing is known of this device"))
        keep_evidence(
            self.store_hook.store,
            run,
            plan,
            dataset=dataset,
            run_id=str(context["run_id"]),
            winner=winner,
            trials=len(self.trials or ()),
        )
        self.log.info("training plan %s: %s", plan.fingerprint[:12], plan.hyperparameters)
        return plan.dump()


class DeepSpeedTrainOperator(ResumableJobMixin, DeepSeekOpsOperator):
    """Train with DeepSpeed in a job outside this process, and return the checkpoint it makes.

    Submits if absent, remembers the job id, defers. A retry follows the job it finds, whichever worker it runs on. A
    person who kills the task stops the job after a checkpoint; a worker that goes away leaves it running.

    :param run: what ``PlanRunOperator`` returned (templated).
    :param plan: a :class:`~deepseek_ops.core.records.TrainingPlan` as JSON (templated).
    ``execution_timeout`` holds while the task waits: it counts from the try's start, or from when the job got its
    machines where that is later, so time in an engine's queue does not count. The job then stops after a checkpoint,
    and the task fails without another try: clear it to go on.

    :param max_losses: how often the job may be lost for another reason than its machines or memory. Airflow's
        ``retries`` bound all of them together.
    :param max_in_place: how often in a row its machines may be taken away or break before the job comes further than
        ever before; otherwise that costs nothing.
    :return: a :class:`~deepseek_ops.core.records.Checkpoint` as JSON.
    """

    external_id_key = "training_job_id"  # never rename: running tasks look it up
    operator_extra_links = (TrainingRunLink(), EngineLink())
    template_fields: Sequence[str] = (*DeepSeekOpsOperator.template_fields, "run", "plan")

    def __init__(
        self,
        *,
        run: Any,
        plan: Any,
        poll_seconds: float = 1.0,
        max_losses: int = 3,
        max_in_place: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.max_in_place = max_in_place
        self.run = run
        self.plan = plan
        self.max_losses = max_losses
        self.poll_seconds = poll_seconds

    def pre_execute(self, context: Context) -> None:
        """Look at nothing: a task that comes back from its wait accounts its job before it ends for whatever reason."""

    def execute(self, context: Context) -> Any:
        from deepseek_ops.core.records import Checkpoint
        from deepseek_ops.pipeline.once import remembered

        super().pre_execute(context)
        push_links(self, context, TrainingRunLink())
        self._stop = threading.Event()
        job = self._job()
        known = remembered(self.facts, job)
        if known is not None:
            self.log.info("an equal plan was trained before: reusing job %s", job.name)
            self.note_reuse(job, context)
            return Checkpoint.load(known).dump()
        return self.execute_resumable(context)

    @cached_property
    def launcher_hook(self) -> LauncherHook:
        """The engine of ``training.engine``; every other job of a run stays on the first one."""
        from deepseek_ops.pipeline.runs import RunPlan

        return launcher_for(self.launcher_conn_id, self.config(RunPlan.load(as_object(self.run))))

    def submit_job(self, context: Context) -> JsonValue:
        job = self._after_interruptions(self._after_losses(self._job(), context))
        status = submit(self, job, stopped=self._stop.is_set)
        self.log.info("training job %s, attempt %d", job.name, status.attempt)
        return job.name

    def get_job_status(self, external_id: JsonValue, context: Context) -> str:
        status = self.launcher.status(str(external_id))
        return "unknown" if status is None else str(status.phase)

    def is_job_active(self, status: str) -> bool:
        from deepseek_ops.core.jobs import JobPhase

        return status == JobPhase.RUNNING

    def is_job_succeeded(self, status: str) -> bool:
        from deepseek_ops.core.jobs import JobPhase

        return status == JobPhase.SUCCEEDED

    def poll_until_complete(self, external_id: JsonValue, context: Context) -> NoReturn:
        push_links(self, context, EngineLink())
        limit = None if self.execution_timeout is None else self.execution_timeout.total_seconds()
        self.defer(
            trigger=TrainingJobTrigger(
                job_name=str(external_id),
                launcher_conn_id=self.launcher_hook.conn_id,
                poll_interval=self.poll_seconds,
                facts_conn_id=self.facts_conn_id,
                lane=self._lane(),
                run=str(context["run_id"]),
                # Airflow enforces execution_timeout in execute() alone.
                deadline=None if limit is None else context["ti"].start_date.timestamp() + limit,
                limit_seconds=limit,
            ),
            method_name="execute_complete",
            # No timeout of the wait: it would count an engine's queue, and leave the job running. The job ends itself
            # at its own limit, and without a triggerer at its lease.
        )
        raise AssertionError("defer() returns never")

    def get_job_result(self, external_id: JsonValue, context: Context) -> dict[str, JsonValue]:
        status = self.launcher.status(str(external_id))
        return self.execute_complete(context, None if status is None else status.dump())

    def execute_complete(self, context: Context, event: dict[str, JsonValue] | None = None) -> dict[str, JsonValue]:
        from deepseek_ops.core.jobs import JobPhase, JobStatus
        from deepseek_ops.core.records import Checkpoint
        from deepseek_ops.pipeline.once import remember

        job = self._job()
        status = self.launcher.status(job.name) if event is None else JobStatus.load(event)
        if status is None or not status.settled:
            status = JobStatus(name=job.name, phase=JobPhase.LOST, reason="the engine does not know the job any more")
        self._say_rest(job.name)
        self._keep_progress(status, context)
        note_end(self, job, status)
        if status.phase is JobPhase.LOST:
            status = self._counted(job, status, context)
        result = self.conclude(job, status, context)
        remember(self.facts, job, result, run=str(context["run_id"]))
        checkpoint = Checkpoint.load(result)
        self.log.info("step %d, %s, %d restarts", checkpoint.step, checkpoint.metrics, checkpoint.restarts)
        return checkpoint.dump()

    def _after_losses(self, job: JobSpec, context: Context) -> JobSpec:
        """Return the job as it is tried again: with smaller micro-batches where memory did not suffice."""
        from deepseek_ops.training.micro_batch import PAYLOAD_KEY

        divisor = kept_losses(context).divisor
        if divisor == 1:
            return job
        self.log.warning("micro-batches are %d times smaller than planned, the global batch is the same", divisor)
        return job.evolve(payload={**job.payload, PAYLOAD_KEY: divisor})

    def _after_interruptions(self, job: JobSpec) -> JobSpec:
        """Return the job with what trainings met on its machines, where its checkpoint interval depends on it."""
        from deepseek_ops.core.records import TrainingPlan
        from deepseek_ops.pipeline.interruptions import history_at, with_history

        if TrainingPlan.load(as_object(self.plan)).checkpoint_steps != "auto":
            return job
        return with_history(job, history_at(self.facts, self.launcher_hook.conn_id))

    def _counted(self, job: JobSpec, status: JobStatus, context: Context) -> JobStatus:
        """Keep what this loss means for the next try, and return the status: failed where there is to be none.

        Called again for the same attempt it counts nothing, and returns the same.
        """
        from deepseek_ops.core.jobs import JobCause, JobPhase

        losses = kept_losses(context).after(status)
        _keep(context, _LOSSES, losses.dump())
        problem = losses.verdict(status, max_losses=self.max_losses, max_in_place=self.max_in_place)
        if status.cause is JobCause.OUT_OF_MEMORY:
            problem = problem or self._no_smaller(job, losses.divisor)
            problem = f"{status.reason}; {problem}" if problem else ""
        return status.evolve(phase=JobPhase.FAILED, reason=problem) if problem else status

    def _no_smaller(self, job: JobSpec, divisor: int) -> str:
        """Return why there are no smaller micro-batches; empty where there are."""
        from deepseek_ops.core.records import TrainingPlan
        from deepseek_ops.training.micro_batch import SmallestBatchError, in_smaller_bites

        if "script" in job.payload:
            return "its script decides about its batches: let it use smaller ones and accumulate more of them"
        plan = TrainingPlan.load(as_object(self.plan))
        try:
            in_smaller_bites(plan, plan.world_size, divisor)
        except SmallestBatchError as error:
            return str(error)
        return ""

    def _keep_progress(self, status: JobStatus, context: Context) -> None:
        """Keep how far the job came where it outlives the try, as the XCom that the triggerer writes does not."""
        ti: Any = context.get("ti")
        noted = ti.xcom_pull(task_ids=self.task_id, key=_PROGRESS, map_indexes=ti.map_index) if ti is not None else None
        known = {"step": status.step, "attempt": status.attempt, "restarts": status.restarts}
        seen = {name: value for name, value in known.items() if value is not None}
        _keep(context, _PROGRESS, {**(noted if isinstance(noted, dict) else {}), **seen, "phase": str(status.phase)})

    def engine_page(self) -> str:
        """Return the page of the job in its engine's own interface; empty where the engine has none."""
        page: str = self.launcher.page(self._job().name)
        return page

    def _say_rest(self, name: str) -> None:
        """Copy the job's whole log: what the triggerer wrote of it may have ended with the triggerer."""
        offset = 0
        while True:
            text, end = self.launcher.logs(name, offset)
            for line in text.splitlines():
                self.log.info("%s", line)
            if end == offset:
                return
            offset = end

    def _lane(self) -> str:
        from deepseek_ops.pipeline.policy import lane_key
        from deepseek_ops.pipeline.runs import RunPlan

        return lane_key(RunPlan.load(as_object(self.run)).manifest.source)

    def _job(self) -> JobSpec:
        from deepseek_ops.core.records import TrainingPlan
        from deepseek_ops.pipeline.runs import RunPlan
        from deepseek_ops.pipeline.trainings import training_job

        run = RunPlan.load(as_object(self.run))
        plan = TrainingPlan.load(as_object(self.plan))
        return training_job(self.config(run), run, plan, device=self.launcher_hook.device, blobs=self.store_hook.blobs)
