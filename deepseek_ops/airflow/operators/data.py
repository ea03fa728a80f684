"""Datasets: prepare the raw corpus of a run, or ingest what has arrived."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from airflow.sdk import Context
from pydantic import JsonValue

from deepseek_ops.airflow.operators.base import DeepSeekOpsOperator, JobOperator, as_object
from deepseek_ops.core.jobs import JobSpec
from deepseek_ops.pipeline.datasets import ingest_raw, prepare_job, prepared, raw_of
from deepseek_ops.pipeline.runs import RunPlan


class PrepareDatasetOperator(JobOperator):
    """Copy the raw corpus into the store, run the model repository's ``prepare`` on it, commit what it makes.

    Equal raw bytes, code, split and environment give the version that exists already.

    :param run: what ``PlanRunOperator`` returned (templated).
    :return: a :class:`~deepseek_ops.core.records.DatasetVersion` as JSON.
    """

    template_fields: Sequence[str] = (*JobOperator.template_fields, "run")

    def __init__(self, *, run: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.run = run

    def job(self, context: Context) -> JobSpec:
        run = RunPlan.load(as_object(self.run))
        config = self.config(run)
        raw = raw_of(config, run, self.store_hook, progress=self.log.info)
        self.log.info("raw corpus: %d files, %d bytes, %s", len(raw.files), raw.num_bytes, raw.fingerprint[:12])
        return prepare_job(config, run, self.store_hook.blobs, raw)

    def finish(self, result: dict[str, JsonValue], *, reused: bool, context: Context) -> dict[str, JsonValue]:
        version = prepared(result)
        self.log.info("dataset %s version %s: %s", version.name, version.version[:12], result.get("report"))
        return version.dump()


class IngestDatasetOperator(DeepSeekOpsOperator):
    """Copy a settled upload into the store as an immutable set and return its identity.

    :param uri: prefix of the upload, such as ``s3://data-lake/raw/deepseek/`` (templated).
    :param dataset: name of the dataset (templated).
    :return: ``{name, fingerprint, files, bytes}``.
    """

    template_fields: Sequence[str] = (*DeepSeekOpsOperator.template_fields, "uri", "dataset")

    def __init__(self, *, uri: str, dataset: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.uri = uri
        self.dataset = dataset

    def execute(self, context: Context) -> dict[str, JsonValue]:
        raw = ingest_raw(self.store_hook.at(self.uri), self.store_hook.blobs, progress=self.log.info)
        identity: dict[str, JsonValue] = {
            "name": self.dataset,
            "fingerprint": raw.fingerprint,
            "files": len(raw.files),
            "bytes": raw.num_bytes,
        }
        for asset in self.outlets:
            context["outlet_events"][asset].extra = {**identity, "uri": self.uri}
        return identity
