"""What our tasks read and wrote, for OpenLineage: datasets and models with their versions, the commit, the manifest.

Loaded by the OpenLineage provider's own call alone: without the provider nothing here is ever imported. Everything
comes from the task's arguments and its result; only the raw version behind a dataset is asked of the store.

Names follow OpenLineage's rules for object stores: the namespace is the bucket, the name is the path in it. A dataset,
a training and a model keep their names over all versions; the version is a facet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import urlsplit

import attr
from airflow.providers.common.compat.sdk import conf
from airflow.providers.openlineage.extractors import OperatorLineage
from openlineage.client.event_v2 import InputDataset, OutputDataset
from openlineage.client.facet_v2 import RunFacet, dataset_version_dataset, source_code_location_job

from deepseek_ops.core.errors import DeepSeekOpsError
from deepseek_ops.core.records import (
    Checkpoint,
    DatasetVersion,
    Evaluation,
    ExportedModel,
    ModelVersion,
    Release,
    RunManifest,
    TrainingPlan,
)
from deepseek_ops.pipeline.runs import PIPELINE_FILE, RunPlan

SCHEMA_PATH = "/deepseek-ops/lineage/schema/RunManifest-1.json"
"""Where Airflow's API server serves the facet's schema."""
FACET = "deepseekOps_runManifest"
Thing = tuple[str, str, str]
"""Namespace, name and version of what was read or written."""


@attr.define
class RunManifestRunFacet(RunFacet):
    """Our RunManifest: the identity of a result, everything that made it resolved to digests."""

    manifest: dict[str, Any]
    fingerprint: str
    _additional_skip_redact: ClassVar[list[str]] = ["manifest", "fingerprint"]

    @staticmethod
    def _get_schema() -> str:
        server = conf.get("api", "base_url", fallback=None) or "http://localhost:8080"
        return f"{server.rstrip('/')}{SCHEMA_PATH}"


@dataclass(frozen=True)
class _Task:
    """A finished task: the operator with its rendered arguments, and what it returned."""

    operator: Any
    result: Mapping[str, Any]

    def given(self, name: str) -> Mapping[str, Any]:
        value = getattr(self.operator, name, None)
        return value if isinstance(value, Mapping) else {}

    def stored(self, key: str, version: str) -> Thing:
        parts = urlsplit(str(self.operator.store_hook.uri))
        namespace = f"{parts.scheme}://{parts.netloc}" if parts.netloc else parts.scheme
        return namespace, "/".join(filter(None, (parts.path.strip("/"), key))), version

    def dataset(self, body: Mapping[str, Any]) -> list[Thing]:
        if not body:
            return []
        version = DatasetVersion.load(body)
        return [self.stored(f"refs/heads/{version.name}", version.version)]

    def checkpoint(self, body: Mapping[str, Any]) -> list[Thing]:
        if not body:
            return []
        made = Checkpoint.load(body)
        return [self.stored(f"runs/{made.plan}", made.model.fingerprint)]

    def model(self, body: Mapping[str, Any]) -> list[Thing]:
        if not body:
            return []
        version = ModelVersion.load(body)
        return [self.stored(f"registry/{version.name}", version.version)]


_Told = tuple[list[Thing], list[Thing]]


def lineage_of_task(operator: Any, result: object) -> OperatorLineage:
    """Return inputs, outputs, the commit and the manifest of a task that has succeeded with a result."""
    task = _Task(operator, result if isinstance(result, Mapping) else {})
    teller = _TELLERS.get(type(operator).__name__)
    inputs, outputs = teller(task) if teller else ([], [])
    manifest = _manifest(task)
    return OperatorLineage(
        inputs=[InputDataset(space, name, facets=_version(version)) for space, name, version in inputs],
        outputs=[OutputDataset(space, name, facets=_version(version)) for space, name, version in outputs],
        run_facets={FACET: RunManifestRunFacet(manifest.dump(), manifest.fingerprint)} if manifest else {},
        job_facets={"sourceCodeLocation": _commit(manifest)} if manifest else {},
    )


def _manifest(task: _Task) -> RunManifest | None:
    """Return the manifest of the run or of the version, with the dataset as soon as it is known."""
    for body in (task.given("version"), task.result):
        if str(body.get("schema", "")).startswith("ModelVersion/"):
            return ModelVersion.load(body).manifest
    plan = task.given("run") or (task.result if str(task.result.get("schema", "")).startswith("RunPlan/") else {})
    if not plan:
        return None
    manifest = RunPlan.load(plan).manifest
    dataset = task.given("dataset") or task.given("plan").get("dataset") or {}
    return manifest.evolve(dataset=str(dataset["version"])) if dataset.get("version") else manifest


def _commit(manifest: RunManifest) -> Any:
    source = manifest.source
    on_tag = source.name.startswith("refs/tags/")
    return source_code_location_job.SourceCodeLocationJobFacet(
        type="git",
        url=source.repository,
        repoUrl=source.repository,
        path=PIPELINE_FILE,
        version=source.commit,
        branch=None if on_tag else source.short,
        tag=source.short if on_tag else None,
    )


def _version(version: str) -> dict[str, Any]:
    return {"version": dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=version)} if version else {}


def _prepared(task: _Task) -> _Told:
    outputs = task.dataset(task.result)
    try:
        made = task.operator.store_hook.datasets.describe(str(task.result.get("version"))).get("lineage")
    except DeepSeekOpsError:
        return [], outputs  # what was read is not known; what was written is
    raw = made.get("raw") if isinstance(made, Mapping) else None
    if not isinstance(raw, Mapping):
        return [], outputs  # files of the commit itself: the commit is told
    return [task.stored(f"refs/heads/{raw['dataset']}", str(raw["version"]))], outputs


def _trained(task: _Task) -> _Told:
    plan = TrainingPlan.load(task.given("plan"))
    base = [task.stored("registry/base", plan.base.fingerprint)] if plan.base else []
    return [*task.dataset(plan.dataset.dump()), *base], task.checkpoint(task.result)


def _evaluated(task: _Task) -> _Told:
    seen = Evaluation.load(task.result)
    plan = Checkpoint.load(task.given("checkpoint")).plan
    inputs = [*task.dataset(task.given("dataset")), *task.checkpoint(task.given("checkpoint"))]
    return inputs, [task.stored(f"runs/{plan}/evaluations/{seen.stage}", seen.fingerprint)]


def _exported(task: _Task) -> _Told:
    made = ExportedModel.load(task.result)
    plan = Checkpoint.load(task.given("checkpoint")).plan
    outputs = [task.stored(f"runs/{plan}/exports/{made.format}", made.files.fingerprint)]
    return task.checkpoint(task.given("checkpoint")), outputs


def _registered(task: _Task) -> _Told:
    inputs = [*task.dataset(task.given("dataset")), *task.checkpoint(task.given("checkpoint"))]
    return inputs, task.model(task.result)


def _released(task: _Task) -> _Told:
    release = Release.load(task.result)
    repository = ModelVersion.load(task.given("version")).manifest.source.repository
    return task.model(task.given("version")), [(repository, release.tag, release.tag_object)]


_TELLERS: Mapping[str, Callable[[_Task], _Told]] = {
    "PrepareDatasetOperator": _prepared,
    "DeepSpeedTrainOperator": _trained,
    "EvaluateOperator": _evaluated,
    "ExportModelOperator": _exported,
    "RegisterModelOperator": _registered,
    "CreateReleaseOperator": _released,
}
"""Operators that read or write something of their own; the others tell commit and manifest."""
