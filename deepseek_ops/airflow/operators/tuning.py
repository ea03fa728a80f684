"""Sweeps: one mapped task a trial, each with its own log, retry and stop button."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import Context
from pydantic import JsonValue

from deepseek_ops.airflow.operators.base import DeepSeekOpsOperator, JobOperator, as_object
from deepseek_ops.airflow.operators.training import note_end
from deepseek_ops.core.errors import JobFailedError, JobStoppedError

if TYPE_CHECKING:
    from deepseek_ops.core.jobs import JobSpec, JobStatus
    from deepseek_ops.core.records import Trial
    from deepseek_ops.pipeline.sweeps import Study


class PlanSweepOperator(DeepSeekOpsOperator):
    """Return the numbers of the trials to run; none when every hyperparameter is fixed.

    :param run: what ``PlanRunOperator`` returned (templated).
    :param dataset: what ``PrepareDatasetOperator`` returned (templated).
    """

    template_fields: Sequence[str] = (*DeepSeekOpsOperator.template_fields, "run", "dataset")

    def __init__(self, *, run: Any, dataset: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run = run
        self.dataset = dataset

    def execute(self, context: Context) -> list[int]:
        from deepseek_ops.core.records import DatasetVersion
        from deepseek_ops.pipeline.runs import RunPlan
        from deepseek_ops.pipeline.sweeps import study_of, trials_of
        from deepseek_ops.pipeline.trainings import model_config

        run = RunPlan.load(as_object(self.run))
        config = self.config(run)
        if not config.training.searched:
            return []
        dataset = DatasetVersion.load(as_object(self.dataset))
        study = study_of(config, run, dataset, model_config(self.store_hook.blobs, config, run))
        done = sum(trial.state in ("complete", "pruned") for trial in trials_of(self.facts, study))
        self.log.info("study %s: %d trials, %d of them known already", study.name, study.trials, done)
        return list(range(study.trials))


class RunTrialOperator(JobOperator):
    """Draw a trial's values, train it, report its curve while it runs, and prune it when it cannot win.

    :param run: what ``PlanRunOperator`` returned (templated).
    :param dataset: what ``PrepareDatasetOperator`` returned (templated).
    :param number: the trial's number in its study.
    :return: a :class:`~deepseek_ops.core.records.Trial` as JSON.
    """

    template_fields: Sequence[str] = (*JobOperator.template_fields, "run", "dataset", "number")

    def __init__(self, *, run: Any, dataset: Any, number: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run = run
        self.dataset = dataset
        self.number = number

    def execute(self, context: Context) -> dict[str, JsonValue]:
        from deepseek_ops.core.records import DatasetVersion
        from deepseek_ops.pipeline.runs import RunPlan
        from deepseek_ops.pipeline.sweeps import draw, settle, study_of, trial_plan
        from deepseek_ops.pipeline.trainings import model_config, replayed_datasets

        self._run = run = RunPlan.load(as_object(self.run))
        dataset = DatasetVersion.load(as_object(self.dataset))
        self._config = self.config(run)
        self._model = model_config(self.store_hook.blobs, self._config, run)
        self._study: Study = study_of(self._config, run, dataset, self._model)
        self._trial = draw(self.facts, self._config, self._study, int(self.number), run=str(context["run_id"]))
        self._pruned = False
        self.log.info("trial %d of %s: %s", self._trial.number, self._study.name, self._trial.values)
        if self._trial.state != "running":
            self.log.info("known already: %s, %s", self._trial.state, self._trial.objective)
            return self._trial.evolve(reused=True).dump()
        replayed = replayed_datasets(self._config, run, self.store_hook.datasets)
        blobs = self.store_hook.blobs
        self._plan = trial_plan(self._config, run, dataset, self._model, self._trial, replayed=replayed, blobs=blobs)
        try:
            settled: Trial = super().execute(context)
        except (JobStoppedError, JobFailedError) as error:
            self.log.warning("%s", error)
            settled = self._ended(error)
        return settle(self.facts, self._study, settled.evolve(plan=self._plan.fingerprint)).dump()

    def _ended(self, error: JobStoppedError | JobFailedError) -> Trial:
        """Return the trial that did not finish: pruned by us, diverged, or failed; a person's stop is raised again."""
        from deepseek_ops.pipeline.trials import diverged

        if self._pruned:
            return self._trial.evolve(state="pruned", objective=self._trial.curve[-1][1])
        if diverged(self._events()):
            return self._trial.evolve(state="complete")
        if isinstance(error, JobStoppedError):
            raise error
        return self._trial.evolve(state="failed")

    def job(self, context: Context) -> JobSpec:
        from deepseek_ops.pipeline.sweeps import trial_job

        return trial_job(self._config, self._run, self._plan, blobs=self.store_hook.blobs)

    def conclude(self, job: JobSpec, status: JobStatus, context: Context) -> dict[str, JsonValue]:
        note_end(self, job, status)
        return super().conclude(job, status, context)

    def watch(self, job: JobSpec, status: JobStatus) -> None:
        from deepseek_ops.pipeline.sweeps import trials_of
        from deepseek_ops.pipeline.trials import trial_curve
        from deepseek_ops.tuning import should_prune

        curve = trial_curve(self._events(), metric=self._config.sweep.metric)
        if len(curve) <= len(self._trial.curve) or self._pruned:
            return
        self._trial = self._trial.evolve(curve=curve)
        others = [trial for trial in trials_of(self.facts, self._study) if trial.number != self._trial.number]
        if should_prune(others, curve, pruner=self._config.sweep.pruner, direction=self._config.sweep.direction):
            self._pruned = True
            self.launcher.stop(job.name, f"pruned by {self._config.sweep.pruner} at step {curve[-1][0]}")

    def finish(self, result: dict[str, JsonValue], *, reused: bool, context: Context) -> Trial:
        from deepseek_ops.core.records import Checkpoint
        from deepseek_ops.pipeline.trials import measured, objective, trial_curve

        checkpoint, events, metric = Checkpoint.load(result), self._events(), self._config.sweep.metric
        if not measured(events, checkpoint, metric=metric):
            self.log.error(
                "the trial's %d steps never measured sweep.metric %r: have the training evaluate at least once in "
                "{eval_steps} steps, raise sweep.max_steps, or name another metric.",
                checkpoint.step,
                metric,
            )
            return self._trial.evolve(state="failed", reused=reused)
        value = objective(checkpoint, metric=metric)
        curve = trial_curve(events, metric=metric) or self._trial.curve
        return self._trial.evolve(state="complete", objective=value, curve=curve, reused=reused)

    def _events(self) -> list[dict[str, JsonValue]]:
        from deepseek_ops.pipeline.trainings import training_job_name

        found: list[dict[str, JsonValue]] = self.launcher.events(training_job_name(self._plan))
        return found
