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
    from deepseek_ops.core.records import DatasetVersion, FileSet


class PrepareDatasetOperator(JobOperator):
    """Take the raw data into the store as a version, run ``prepare`` on it, check and commit what it makes.

    Equal raw bytes, code, parameters, checks and environment give the version that exists already. Data that a check
    of the pipeline file blocks makes none: the task fails at once with what was found and where. A commit that names
    a version by a pointer gets that data (``deepseek_ops/pipeline/pinning.py`` says when, and when the run refuses).

    :param run: what ``PlanRunOperator`` returned (templated).
    :param cause: what started the run (templated); ``data`` and ``schedule`` ask for the newest data.
    :return: a :class:`~deepseek_ops.core.records.DatasetVersion` as JSON.
    """

    template_fields: Sequence[str] = (*JobOperator.template_fields, "run", "cause")

    def __init__(
        self, *, run: Any, cause: str = "{{ ti.xcom_pull('resolve_source')['cause'] }}", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.run = run
        self.cause = cause

    def execute(self, context: Context) -> Any:
        from deepseek_ops.pipeline.pinning import is_used_as_it_is, pinned
        from deepseek_ops.pipeline.runs import RunPlan

        run = RunPlan.load(as_object(self.run))
        config = self.config(run)
        newest = self.cause in ("data", "schedule")
        self._pin = pinned(config, run, self.store_hook.blobs, self.store_hook.datasets, newest=newest)
        if self._pin is not None and is_used_as_it_is(config, self._pin):
            self.log.info("the commit names version %s, which needs no preparation", self._pin.version.version[:12])
            return self._pin.version.dump()
        return super().execute(context)

    def job(self, context: Context) -> JobSpec:
        from deepseek_ops.pipeline.datasets import prepare_job, raw_identity, raw_of
        from deepseek_ops.pipeline.runs import RunPlan

        run = RunPlan.load(as_object(self.run))
        config = self.config(run)
        datasets = self.store_hook.datasets
        if self._pin is not None and self._pin.raw is not None:
            raw: DatasetVersion | FileSet = self._pin.raw
            self.log.info("the commit names %s, made from this raw data:", self._pin.version.version[:12])
        else:
            raw = raw_of(config, run, self.store_hook, datasets, progress=self.log.info)
        self.log.info("raw data: %s, %d bytes", raw_identity(raw), raw.num_bytes)
        return prepare_job(config, run, self.store_hook.blobs, raw, datasets)

    def finish(self, result: dict[str, JsonValue], *, reused: bool, context: Context) -> dict[str, JsonValue]:
        from deepseek_ops.pipeline.datasets import gate_lines, prepared
        from deepseek_ops.pipeline.pinning import held_to
        from deepseek_ops.pipeline.runs import RunPlan

        version = prepared(result)
        if self._pin is not None:
            run = RunPlan.load(as_object(self.run))
            version, other = held_to(self.config(run), run, self._pin, version, self.store_hook.datasets)
            if other:
                self.log.warning("%s", other)
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
