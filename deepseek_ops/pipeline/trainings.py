"""From a run to its training: the model's config from the commit, the plan, and the job that carries it out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from deepseek_ops.core.config import PipelineFile
from deepseek_ops.core.errors import ConfigError, PermanentError
from deepseek_ops.core.jobs import JobSpec
from deepseek_ops.core.ports import Blobs
from deepseek_ops.core.records import DatasetVersion, TrainingPlan
from deepseek_ops.cost import load_prices
from deepseek_ops.data import DatasetRepository
from deepseek_ops.pipeline.once import job_name
from deepseek_ops.pipeline.runs import RunPlan, code_of
from deepseek_ops.training import plan_training
from deepseek_ops.training.script import TrainingScript, scripted


@dataclass(eq=False)
class BudgetError(PermanentError):
    """A budget that pays for nothing."""

    usd: float
    seconds: float

    def __str__(self) -> str:
        return (
            f"the budget of {self.usd:.4f} USD pays for {self.seconds:.0f} s of training; "
            "raise training.budget.usd or the run's budget_usd."
        )


def model_config(blobs: Blobs, config: PipelineFile, run: RunPlan) -> dict[str, JsonValue]:
    """Return the transformers config that ``training.model`` names in the run's commit. Raises ConfigError."""
    path = config.training.model
    for entry in code_of(blobs, run).files:
        if entry.path == path:
            try:
                model = json.loads(blobs.get(entry.digest))
            except ValueError as error:
                raise ConfigError(path, 0, "", f"it is not JSON: {error}.", "Write a transformers config.") from error
            if isinstance(model, dict):
                return model
            raise ConfigError(path, 1, "", "it is not a JSON object.", "Write a transformers config.")
    raise ConfigError(
        "deepseek.yaml", 0, "training.model", f"{path!r} is not in the commit.", "Push it, or correct the path."
    )


def training_plan(
    config: PipelineFile,
    run: RunPlan,
    *,
    dataset: DatasetVersion,
    model: Mapping[str, JsonValue],
    values: Mapping[str, JsonValue],
    datasets: DatasetRepository,
    blobs: Blobs,
) -> TrainingPlan:
    """Return the run's training, everything resolved; see ``training.plan_training`` for its errors.

    ``datasets`` is asked for what the run's base was trained on, where some of it is replayed; ``blobs`` for
    the commit's code, where a script of it trains.
    """
    plan = plan_training(
        config,
        dataset=dataset,
        model=model,
        values=values,
        base=run.base,
        base_datasets=replayed_datasets(config, run, datasets),
        environment=run.manifest.environment,
        nonce=run.nonce,
    )
    return as_of_script(config, run, plan, blobs)


def as_of_script(config: PipelineFile, run: RunPlan, plan: TrainingPlan, blobs: Blobs) -> TrainingPlan:
    """Return the plan as that of the script which trains the run, where one does. Raises ConfigError."""
    script = training_script(config, run, plan, blobs)
    return plan if script is None else scripted(plan, script)


def replayed_datasets(config: PipelineFile, run: RunPlan, datasets: DatasetRepository) -> tuple[DatasetVersion, ...]:
    """Return what the run's base was trained on where some of it is replayed, in the training and in its trials."""
    if not config.training.replay or run.base is None or not run.base_dataset:
        return ()
    return (datasets.load(run.base_dataset),)


def training_script(config: PipelineFile, run: RunPlan, plan: TrainingPlan, blobs: Blobs) -> TrainingScript | None:
    """Return the script that trains the plan, or None where our own loop does. Raises ConfigError for a missing one."""
    given = config.training.script
    if given is None:
        return None
    code = code_of(blobs, run)
    if given.path not in {entry.path for entry in code.files}:
        problem = f"{given.path!r} is not in the commit."
        raise ConfigError("deepseek.yaml", 0, "training.script.path", problem, "Push it, or correct the path.")
    rate = plan.hyperparameters.bias_update_rate
    return TrainingScript(code=code, path=given.path, args=given.args, bias_update_rate=rate)


def training_job_name(plan: TrainingPlan) -> str:
    """Return the name of the job that trains a plan: equal plans share one job and one result."""
    return job_name("train", {"plan": plan.dump()}, environment=plan.environment)


def training_job(
    config: PipelineFile, run: RunPlan, plan: TrainingPlan, *, device: str = "cpu", blobs: Blobs | None = None
) -> JobSpec:
    """Return the job of a training; ``blobs`` is asked for the commit's code where a script of it trains.

    Alert rules travel beside the plan, because who is told does not decide the weights; nor does with how few machines
    the training may go on, because the global batch stays.
    """
    payload: dict[str, JsonValue] = {
        "plan": plan.dump(),
        "alerts": [alert.model_dump(mode="json", by_alias=True, exclude_none=True) for alert in config.alerts],
    }
    if blobs is not None and (script := training_script(config, run, plan, blobs)) is not None:
        payload["script"] = script.dump()
    return JobSpec(
        name=training_job_name(plan),
        kind="train",
        payload=payload,
        num_ranks=plan.nproc_per_node,
        num_nodes=plan.num_nodes,
        min_nodes=config.training.min_nodes,
        max_restarts=3,
        budget_seconds=_seconds_allowed(config, run, plan, device=device),
        grace_seconds=60,
        lease_seconds=180,
    )


def _seconds_allowed(config: PipelineFile, run: RunPlan, plan: TrainingPlan, *, device: str) -> float | None:
    """Return how long the budget lets the training run in all its attempts, None for ever.

    The job itself ends at it, whoever is looking; what its earlier attempts spent is gone.
    """
    limits = []
    if config.training.budget.hours is not None:
        limits.append(config.training.budget.hours * 3600)
    if run.budget_usd is not None:
        per_second = load_prices().price(device).usd_per_hour * plan.world_size / 3600
        if per_second > 0:
            seconds = run.budget_usd / per_second
            if seconds < 1:
                raise BudgetError(run.budget_usd, seconds)
            limits.append(seconds)
    return min(limits, default=None)
