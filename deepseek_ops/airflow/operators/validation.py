"""Validation: stages in order, paired with the champion, and the gate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import Context
from pydantic import JsonValue

from deepseek_ops.airflow.operators.base import DeepSeekOpsOperator, JobOperator, as_object

if TYPE_CHECKING:
    from deepseek_ops.core.jobs import JobSpec


class PlanValidationOperator(DeepSeekOpsOperator):
    """Return the stages of the pipeline file, in order.

    :param run: what ``PlanRunOperator`` returned (templated).
    """

    template_fields: Sequence[str] = (*DeepSeekOpsOperator.template_fields, "run")

    def __init__(self, *, run: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run = run

    def execute(self, context: Context) -> list[dict[str, JsonValue]]:
        from deepseek_ops.pipeline.evaluations import stages_of
        from deepseek_ops.pipeline.runs import RunPlan

        return [stage.dump() for stage in stages_of(self.config(RunPlan.load(as_object(self.run))))]


class EvaluateOperator(JobOperator):
    """Evaluate one stage, pair it with the champion's results on the same items, and return the verdict.

    :param run: what ``PlanRunOperator`` returned (templated).
    :param dataset: the dataset version whose test split is used (templated).
    :param checkpoint: a :class:`~deepseek_ops.core.records.Checkpoint` as JSON (templated).
    :param stage: one of ``PlanValidationOperator``'s stages.
    :return: a :class:`~deepseek_ops.core.records.Evaluation` as JSON.
    """

    template_fields: Sequence[str] = (*JobOperator.template_fields, "run", "dataset", "checkpoint", "stage")

    def __init__(self, *, run: Any, dataset: Any, checkpoint: Any, stage: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run = run
        self.dataset = dataset
        self.checkpoint = checkpoint
        self.stage = stage

    def job(self, context: Context) -> JobSpec:
        from deepseek_ops.core.records import Checkpoint

        return self._job(Checkpoint.load(as_object(self.checkpoint)).model)

    def finish(self, result: dict[str, JsonValue], *, reused: bool, context: Context) -> dict[str, JsonValue]:
        from deepseek_ops.core.records import Checkpoint
        from deepseek_ops.pipeline.evaluations import champion_of, judge_stage
        from deepseek_ops.pipeline.once import remember, remembered
        from deepseek_ops.pipeline.runs import RunPlan
        from deepseek_ops.pipeline.trainings import model_config
        from deepseek_ops.validation import StagePlan

        run = RunPlan.load(as_object(self.run))
        config = self.config(run)
        stage = StagePlan.load(as_object(self.stage))
        champion = champion_of(self.store_hook, self.facts, config, stage)
        against = None
        if champion is not None:
            job = self._job(champion.model)
            against = remembered(self.facts, job)
            if against is None:
                against = self.follow(job, context)
                remember(self.facts, job, against, run=str(context["run_id"]))
        vocabulary = model_config(self.store_hook.blobs, config, run).get("vocab_size")
        evaluation = judge_stage(
            self.store_hook.blobs,
            stage,
            model=Checkpoint.load(as_object(self.checkpoint)).model,
            vocab_size=vocabulary if isinstance(vocabulary, int) else None,
            result=result,
            champion=champion,
            against=against,
        )
        self.log.info("%s: %s - %s", evaluation.stage, evaluation.verdict.upper(), evaluation.reason)
        return evaluation.dump()

    def _job(self, model: Any) -> JobSpec:
        from deepseek_ops.core.records import DatasetVersion
        from deepseek_ops.pipeline.evaluations import evaluation_job
        from deepseek_ops.pipeline.runs import RunPlan
        from deepseek_ops.validation import StagePlan

        run = RunPlan.load(as_object(self.run))
        dataset = DatasetVersion.load(as_object(self.dataset))
        return evaluation_job(run, dataset, model=model, stage=StagePlan.load(as_object(self.stage)))


class RequirePassOperator(DeepSeekOpsOperator):
    """Fail unless every stage passed; return the formats that may now be exported.

    An inconclusive stage does not pass: it says how much evidence is missing, and nothing is released on missing
    evidence.

    :param run: what ``PlanRunOperator`` returned (templated).
    :param evaluations: what the stages returned (templated).
    """

    template_fields: Sequence[str] = (*DeepSeekOpsOperator.template_fields, "run", "evaluations")

    def __init__(self, *, run: Any, evaluations: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run = run
        self.evaluations = evaluations

    def execute(self, context: Context) -> list[str]:
        from deepseek_ops.core.records import Evaluation, Verdict
        from deepseek_ops.pipeline.evaluations import GateFailedError
        from deepseek_ops.pipeline.runs import RunPlan

        found = [Evaluation.load(evaluation) for evaluation in self.evaluations if evaluation]
        short = [evaluation for evaluation in found if evaluation.verdict is not Verdict.PASS]
        if short:
            raise GateFailedError(tuple(f"{item.stage}: {item.verdict} ({item.reason})" for item in short))
        deployment = self.config(RunPlan.load(as_object(self.run))).deployment
        return list(deployment.formats) if deployment else ["safetensors"]
