"""Exports: one mapped task a format."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import Context
from pydantic import JsonValue

from deepseek_ops.airflow.operators.base import JobOperator, as_object

if TYPE_CHECKING:
    from deepseek_ops.core.jobs import JobSpec


class ExportModelOperator(JobOperator):
    """Export the model to one format; it counts as verified when its own runtime agreed with the checkpoint.

    :param run: what ``PlanRunOperator`` returned (templated).
    :param dataset: where the sample texts of the parity check come from (templated).
    :param checkpoint: a :class:`~deepseek_ops.core.records.Checkpoint` as JSON (templated).
    :param format: onnx, tensorrt, torchscript or safetensors.
    :return: an :class:`~deepseek_ops.core.records.ExportedModel` as JSON.
    """

    template_fields: Sequence[str] = (*JobOperator.template_fields, "run", "dataset", "checkpoint", "format")

    def __init__(self, *, run: Any, dataset: Any, checkpoint: Any, format: str, **kwargs: Any) -> None:  # noqa: A002
        super().__init__(**kwargs)
        self.run = run
        self.dataset = dataset
        self.checkpoint = checkpoint
        self.format = format

    def job(self, context: Context) -> JobSpec:
        from deepseek_ops.core.records import Checkpoint, DatasetVersion
        from deepseek_ops.pipeline.exports import export_job, sample_texts
        from deepseek_ops.pipeline.runs import RunPlan

        run = RunPlan.load(as_object(self.run))
        texts = sample_texts(self.store_hook.datasets, DatasetVersion.load(as_object(self.dataset)))
        model = Checkpoint.load(as_object(self.checkpoint)).model
        return export_job(run, model=model, format_name=str(self.format), texts=texts)

    def finish(self, result: dict[str, JsonValue], *, reused: bool, context: Context) -> dict[str, JsonValue]:
        from deepseek_ops.core.records import ExportedModel

        exported = ExportedModel.load(result)
        parity = exported.parity
        found = (
            f"max error {parity.max_abs_error:.2g}, top-1 {parity.top1_agreement:.4f}" if parity else exported.reason
        )
        self.log.info("%s: %s (%s)", exported.format, exported.status, found)
        return exported.dump()
