"""From raw objects in a data lake to a prepared, versioned dataset."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import JsonValue

from deepseek_ops.core.config import EvaluationSet, PipelineFile, PrepareLimits
from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.jobs import JobSpec
from deepseek_ops.core.ports import Blobs
from deepseek_ops.core.records import DatasetVersion, FileSet
from deepseek_ops.data import DatasetRepository
from deepseek_ops.data.content import ContentReport
from deepseek_ops.data.content.lake import MissingDatasetError, ingest
from deepseek_ops.pipeline.changes import PIPELINE_FILE, is_given_to_jobs
from deepseek_ops.pipeline.once import job_name
from deepseek_ops.pipeline.registration import Stores
from deepseek_ops.pipeline.runs import RunPlan, code_of


@dataclass(eq=False)
class UnknownEvaluationSetError(PermanentError):
    """The pipeline file names a file that the commit does not have."""

    path: str

    def __str__(self) -> str:
        return (
            f"{PIPELINE_FILE}: data.checks.contamination.against: {self.path} is not in the commit; add or correct it."
        )


def raw_of(
    config: PipelineFile,
    run: RunPlan,
    stores: Stores,
    datasets: DatasetRepository,
    *,
    progress: Callable[[str], None] = lambda _line: None,
) -> DatasetVersion | FileSet:
    """Return the run's raw data: a version of the raw dataset made from the lake, or files of the commit itself.

    Raises MissingDatasetError when there are none.
    """
    raw = config.data.raw or ""
    if "://" in raw:
        return ingest(datasets, stores.at(raw), raw_name(config.data.dataset), progress=progress).version
    prefix = f"{raw.strip('/')}/"
    files = [entry for entry in code_of(stores.blobs, run).files if raw and entry.path.startswith(prefix)]
    if not files:
        raise MissingDatasetError(raw or "(data.raw is not set)")
    return FileSet(files=tuple(entry.evolve(path=entry.path.removeprefix(prefix)) for entry in files))


def raw_name(dataset: str) -> str:
    """Return the name of the dataset that holds the raw data of another one."""
    return f"{dataset[:96]}-raw"


def prepare_job(
    config: PipelineFile, run: RunPlan, blobs: Blobs, raw: DatasetVersion | FileSet, datasets: DatasetRepository
) -> JobSpec:
    """Return the job that runs the model repository's ``prepare`` on the raw data and commits the version it makes.

    The job gets the commit's files without those that preparation cannot mean: another seed in the pipeline file, a
    result or a pointer that we committed, or a page of text gives the same data. Evaluation sets are resolved to
    versions here. Limits are not part of the job's name: more memory gives the same data, and a failed job is tried
    again with what it has now. Raises UnknownEvaluationSetError, VersionNotFoundError.
    """
    data = config.data
    everything = code_of(blobs, run).files
    needed = {one.path for one in data.checks.contamination.against if one.path}
    if missing := needed - {entry.path for entry in everything}:
        raise UnknownEvaluationSetError(min(missing))
    files = tuple(entry for entry in everything if entry.path in needed or is_given_to_jobs(config, entry.path))
    payload: dict[str, JsonValue] = {
        "code": FileSet(files=files).dump(),
        "callable": data.prepare or "",
        "raw": raw.dump(),
        "dataset": data.dataset,
        "split": data.split.model_dump(),
        "parameters": data.parameters,
        "tokenizer": data.tokenizer or "",
        "checks": data.checks.model_dump(mode="json", by_alias=True, exclude_none=True),
        "evaluation": [_resolved(one, datasets) for one in data.checks.contamination.against],
    }
    return JobSpec(
        name=job_name("prepare", payload, environment=run.manifest.environment),
        kind="prepare",
        payload={**payload, "limits": _limits(data.limits)},
        max_restarts=0,
        timeout_seconds=data.limits.time.total_seconds(),
        lease_seconds=120,
    )


def _resolved(one: EvaluationSet, datasets: DatasetRepository) -> dict[str, JsonValue]:
    common: dict[str, JsonValue] = {"name": one.name, "fields": list(one.fields)}
    if one.path is not None:
        return {**common, "path": one.path}
    version = datasets.load(datasets.resolve(one.dataset or ""))
    return {**common, "dataset": version.dump(), "pattern": one.pattern}


def _limits(limits: PrepareLimits) -> dict[str, JsonValue]:
    return {
        "memory_bytes": limits.memory,
        "cpu_seconds": math.ceil(limits.cpu.total_seconds()),
        "file_bytes": limits.file_size,
        "open_files": limits.open_files,
        "processes": limits.processes,
    }


def prepared(result: dict[str, JsonValue]) -> DatasetVersion:
    """Return the version a prepare job made."""
    version = result["dataset"]
    return DatasetVersion.load(version if isinstance(version, dict) else {})


def gate_lines(result: dict[str, JsonValue]) -> list[str]:
    """Return the findings of a prepare job as lines for people; empty when there are none."""
    gate = result.get("gate")
    if not isinstance(gate, dict):
        return []
    return [line for finding in ContentReport.load(gate).findings for line in finding.lines()]


def raw_identity(raw: DatasetVersion | FileSet) -> str:
    """Return what raw data is called in a log."""
    if isinstance(raw, DatasetVersion):
        return f"{raw.name} version {raw.version[:12]}, {raw.num_files} files"
    return f"{len(raw.files)} files of the commit, {raw.fingerprint[:12]}"
