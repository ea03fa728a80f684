"""The registry, and the record of the experiment in Git."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.sdk import Context
from pydantic import JsonValue

from deepseek_ops.airflow.operators.base import DeepSeekOpsOperator, as_object


class RegisterModelOperator(DeepSeekOpsOperator):
    """Write the self-contained bundle of a model version; the same run registers the same version twice.

    A run of content that was registered before, from whatever branch or commit, is linked to that version.

    :param run: what ``PlanRunOperator`` returned (templated).
    :param dataset: what ``PrepareDatasetOperator`` returned (templated).
    :param checkpoint: a :class:`~deepseek_ops.core.records.Checkpoint` as JSON (templated).
    :param evaluations: the gate's evidence (templated).
    :param exports: the exported models (templated).
    :return: a :class:`~deepseek_ops.core.records.ModelVersion` as JSON.
    """

    template_fields: Sequence[str] = (
        *DeepSeekOpsOperator.template_fields,
        "run",
        "dataset",
        "checkpoint",
        "evaluations",
        "exports",
    )

    def __init__(
        self, *, run: Any, dataset: Any, checkpoint: Any, evaluations: Any, exports: Any, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.run = run
        self.dataset = dataset
        self.checkpoint = checkpoint
        self.evaluations = evaluations
        self.exports = exports

    def execute(self, context: Context) -> dict[str, JsonValue]:
        from deepseek_ops.core.records import Checkpoint, DatasetVersion, Evaluation, ExportedModel
        from deepseek_ops.pipeline.identity import content_identity, link_run, made_before, remember_made
        from deepseek_ops.pipeline.registration import register_run, registry_of
        from deepseek_ops.pipeline.runs import RunPlan, code_of

        run = RunPlan.load(as_object(self.run))
        config = self.config(run)
        run_id, dataset = str(context["run_id"]), DatasetVersion.load(as_object(self.dataset))
        identity = content_identity(config, run, code_of(self.store_hook.blobs, run), dataset)
        same = made_before(self.facts, identity)
        version = register_run(
            registry_of(config, self.store_hook, self.facts),
            run,
            dataset=dataset,
            checkpoint=Checkpoint.load(as_object(self.checkpoint)),
            evaluations=[Evaluation.load(item) for item in self.evaluations if item],
            exports=[ExportedModel.load(item) for item in self.exports if item],
            run_id=run_id,
            same=same.version if same else "",
        )
        made = remember_made(self.facts, identity, version, run=run_id)
        if made.run != run_id and made.version == version.version:
            link_run(self.facts, run_id, made)
            self.note(context, f"the same content as {made.text()}")
        self.log.info("registered %s %s, bundle %s", version.name, version.version, version.bundle[:12])
        for asset in self.outlets:
            context["outlet_events"][asset].extra = {"name": version.name, "version": version.version}
        return version.dump()


class RecordExperimentOperator(DeepSeekOpsOperator):
    """Push the structured record of the experiment and its annotated tag with the metrics to the model repository.

    The pipeline file's ``records`` say whether it is a commit, a Git note or the tag alone.

    :param dataset: what ``PrepareDatasetOperator`` returned (templated).
    :param plan: what ``PlanTrainingOperator`` returned (templated).
    :param checkpoint: what was trained (templated).
    :param version: what ``RegisterModelOperator`` returned (templated).
    :param tracker_url: page of the run in an experiment tracker, written into the record (templated); what the
        run's tracker said where it is empty.
    :return: ``{tag, tag_object, commit, way, on_branch, release_run}``.
    """

    template_fields: Sequence[str] = (
        *DeepSeekOpsOperator.template_fields,
        "dataset",
        "plan",
        "checkpoint",
        "version",
        "tracker_url",
    )

    def __init__(
        self,
        *,
        dataset: Any,
        plan: Any,
        checkpoint: Any,
        version: Any,
        tracker_url: Any = "",
        git_conn_id: str = "{{ params.repository }}",
        **kwargs: Any,
    ) -> None:
        super().__init__(git_conn_id=git_conn_id, **kwargs)
        self.dataset = dataset
        self.plan = plan
        self.checkpoint = checkpoint
        self.version = version
        self.tracker_url = tracker_url

    def execute(self, context: Context) -> dict[str, JsonValue]:
        from deepseek_ops.core.records import Checkpoint, DatasetVersion, ModelVersion, TrainingPlan
        from deepseek_ops.pipeline.identity import linked
        from deepseek_ops.pipeline.releases import record_experiment
        from deepseek_ops.pipeline.tags import experiment_of
        from deepseek_ops.pipeline.tracking import tracker_url

        run_id = str(context["run_id"])
        if (same := linked(self.facts, run_id)) and (known := experiment_of(self.facts, same.model, same.version)):
            self.log.info("the experiment is that of %s: tag %s", same.text(), known["tag"])
            return known
        dag_run: Any = context["dag_run"]
        recorded = record_experiment(
            self.git,
            self.store_hook,
            self.facts,
            dataset=DatasetVersion.load(as_object(self.dataset)),
            plan=TrainingPlan.load(as_object(self.plan)),
            checkpoint=Checkpoint.load(as_object(self.checkpoint)),
            version=ModelVersion.load(as_object(self.version)),
            run_id=run_id,
            date=dag_run.run_after.date(),
            tracker_url=str(self.tracker_url or "") or tracker_url(self.facts, run_id),
        )
        self.log.info("recorded as %s: tag %s on commit %s", recorded["way"], recorded["tag"], recorded["commit"])
        return recorded
