"""Datasets: prepare the raw corpus of a run, or ingest what has arrived."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import Context
from pydantic import JsonValue

from deepseek_ops.airflow.operators.base import DeepSeekOpsOperator, JobOperator, as_object

if TYPE_CHECKING:
    from deepseek_ops.core.jobs import JobSpec
    from deepseek_ops.core.ports import ObjectStore


class PrepareDatasetOperator(JobOperator):
    """Take the raw data into the store as a version, run ``prepare`` on it, check and commit what it makes.

    Equal raw bytes, code, parameters, checks and environment give the version that exists already. Data that a check
    of the pipeline file blocks makes none: the task fails at once with what was found and where.

    :param run: what ``PlanRunOperator`` returned (templated).
    :return: a :class:`~deepseek_ops.core.records.DatasetVersion` as JSON.
    """

    template_fields: Sequence[str] = (*JobOperator.template_fields, "run")

    def __init__(self, *, run: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run = run

    def job(self, context: Context) -> JobSpec:
        from deepseek_ops.pipeline.datasets import prepare_job, raw_identity, raw_of
        from deepseek_ops.pipeline.runs import RunPlan

        run = RunPlan.load(as_object(self.run))
        config = self.config(run)
        datasets = self.store_hook.datasets
        raw = raw_of(config, run, self.store_hook, datasets, progress=self.log.info)
        self.log.info("raw data: %s, %d bytes", raw_identity(raw), raw.num_bytes)
        return prepare_job(config, run, self.store_hook.blobs, raw, datasets)

    def finish(self, result: dict[str, JsonValue], *, reused: bool, context: Context) -> dict[str, JsonValue]:
        from deepseek_ops.pipeline.datasets import gate_lines, prepared

        version = prepared(result)
        self.log.info("dataset %s version %s: %s", version.name, version.version[:12], result.get("report"))
        for line in gate_lines(result):
            self.log.warning("%s", line)
        return version.dump()


class IngestDatasetOperator(DeepSeekOpsOperator):
    """Make a settled upload the newest version of the raw dataset and return its identity.

    Objects that are there already, by key, size and time, are not fetched again.

    :param uri: prefix of the upload, such as ``s3://data-lake/raw/deepseek/`` (templated).
    :param dataset: name of the dataset (templated).
    :return: ``{name, raw, version, fingerprint, files, bytes}``; ``raw`` is the raw dataset's name.
    """

    template_fields: Sequence[str] = (*DeepSeekOpsOperator.template_fields, "uri", "dataset")

    def __init__(self, *, uri: str, dataset: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.uri = uri
        self.dataset = dataset

    def execute(self, context: Context) -> dict[str, JsonValue]:
        from deepseek_ops.data.content.lake import ingest
        from deepseek_ops.pipeline.datasets import raw_name

        lake = self.lake(context)
        done = ingest(self.store_hook.datasets, lake, raw_name(self.dataset), progress=self.log.info)
        raw = done.version
        self.log.info(
            "%s is version %s: %d objects fetched, %d as before, %d gone",
            *(raw.name, raw.version[:12], done.fetched, done.unchanged, done.removed),
        )
        identity: dict[str, JsonValue] = {
            "name": self.dataset,
            "raw": raw.name,
            "version": raw.version,
            "fingerprint": raw.tree,
            "files": raw.num_files,
            "bytes": raw.num_bytes,
        }
        for asset in self.outlets:
            context["outlet_events"][asset].extra = {**identity, "uri": self.uri}
        return identity

    def lake(self, context: Context) -> ObjectStore:
        """Return what is ingested, as a store."""
        return self.store_hook.at(self.uri)
