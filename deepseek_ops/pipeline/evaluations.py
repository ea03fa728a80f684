"""One validation stage: the job that measures, the champion it is paired with, and the verdict."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from deepseek_ops.core.config import PipelineFile
from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.jobs import JobSpec
from deepseek_ops.core.ports import Blobs, Facts
from deepseek_ops.core.records import DatasetVersion, Evaluation, FileEntry, FileSet
from deepseek_ops.pipeline.once import job_name
from deepseek_ops.pipeline.registration import Stores, registry_of
from deepseek_ops.pipeline.runs import RunPlan
from deepseek_ops.validation import StagePlan, judge, plan_stages

ITEM_VALUES = {"val_loss": "nll", "bits_per_byte": "bits_per_byte", "top1_accuracy": "top1_accuracy"}
"""Metric -> the field of a per-item result that is its value for one item."""


@dataclass(eq=False)
class GateFailedError(PermanentError):
    """A model that did not pass its gates."""

    stages: tuple[str, ...]

    def __str__(self) -> str:
        return f"the gates were not passed: {'; '.join(self.stages)}. Nothing is exported, registered or released."


@dataclass(frozen=True)
class Champion:
    """The model that serves now."""

    version: str
    model: FileSet


def stages_of(config: PipelineFile) -> tuple[StagePlan, ...]:
    """Return the stages of the pipeline file, in order."""
    return plan_stages(config.validation)


def evaluation_job(run: RunPlan, dataset: DatasetVersion, *, model: FileSet, stage: StagePlan) -> JobSpec:
    """Return the job that measures ``model`` on the stage's selection; the champion's is the same job."""
    payload: dict[str, JsonValue] = {
        "model": model.dump(),
        "dataset": dataset.dump(),
        "selection": {"split": stage.split, "max_items": stage.max_items},
        "stage": "evaluate",
    }
    return JobSpec(
        name=job_name("evaluate", payload, environment=run.manifest.environment),
        kind="evaluate",
        payload={**payload, "stage": stage.name},
        max_restarts=0,
        timeout_seconds=stage.timeout_seconds,
        lease_seconds=180,
    )


def champion_of(stores: Stores, facts: Facts, config: PipelineFile, stage: StagePlan) -> Champion | None:
    """Return the model that the alias ``champion`` names, where the stage compares with it and there is one."""
    if stage.against != "champion":
        return None
    registry = registry_of(config, stores, facts)
    entry = registry.alias(config.name, "champion")
    if entry is None:
        return None
    return Champion(entry.version, registry.read_bundle(entry.version, digest=entry.bundle).checkpoint.model)


def judge_stage(
    blobs: Blobs,
    stage: StagePlan,
    *,
    model: FileSet,
    vocab_size: int | None,
    result: Mapping[str, JsonValue],
    champion: Champion | None,
    against: Mapping[str, JsonValue] | None,
) -> Evaluation:
    """Return the stage's evaluation: metrics, paired comparison, verdict and a sentence for people.

    Raises IncomparableItemsError when the champion was measured on other items.
    """
    metrics = _numbers(result["metrics"])
    items = _items(result)
    found = judge(
        stage,
        metrics,
        _values(blobs, items, stage.metric),
        None if against is None else _values(blobs, _items(against), stage.metric),
        vocab_size=vocab_size,
    )
    return Evaluation(
        stage=stage.name,
        model=model.fingerprint,
        dataset=str(result["dataset"]),
        metrics=metrics,
        num_items=int(str(result["num_items"])),
        items=items,
        verdict=found.verdict,
        reason=found.reason,
        champion=champion.version if champion else "",
        delta=found.delta,
        interval=found.interval,
    )


def _items(result: Mapping[str, JsonValue]) -> FileEntry:
    entry = result["items"]
    return FileEntry.load(entry if isinstance(entry, dict) else {})


def _values(blobs: Blobs, items: FileEntry, metric: str) -> dict[str, float]:
    """Return item id -> its value of the metric, from the stored JSON lines."""
    field = ITEM_VALUES.get(metric, metric)
    rows = (json.loads(line) for line in blobs.get(items.digest).splitlines() if line)
    return {str(row["id"]): float(row[field]) for row in rows}


def _numbers(value: JsonValue) -> dict[str, float]:
    return {name: float(str(number)) for name, number in value.items()} if isinstance(value, dict) else {}
