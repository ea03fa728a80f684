"""From the pipeline file to a training plan that is known to be runnable, before anything is paid for."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from deepseek_ops.core.config import PipelineFile
from deepseek_ops.core.records import DatasetVersion, FileSet, Hyperparameters, LoraPlan, ReplayPlan, TrainingPlan
from deepseek_ops.training.deepspeed_config import deepspeed_config, precision_of, zero_stage_of
from deepseek_ops.training.errors import UnsupportedTrainingError
from deepseek_ops.training.schedule import REWARM

TRIAL_RUNGS = 4
"""Validation losses of one trial, at most eval_steps apart: the points at which a pruner can end it."""
_DEFAULT_ZERO_STAGE = 2
_OF_ALL_RANKS = ("gradient_accumulation_steps", "expert_parallel")
"""DeepSpeed keys whose right value depends on the number of ranks: a trial, on one rank, finds its own."""


def plan_training(
    config: PipelineFile,
    *,
    dataset: DatasetVersion,
    model: Mapping[str, JsonValue],
    values: Mapping[str, JsonValue] | None = None,
    base: FileSet | None = None,
    base_datasets: Sequence[DatasetVersion] = (),
    environment: str = "",
    nonce: str = "",
) -> TrainingPlan:
    """Return the plan of the run's real training.

    Args:
        config: The commit's pipeline file, overrides applied.
        dataset: What is trained on.
        model: The transformers config that ``training.model`` names.
        values: What the sweep found best; empty without one.
        base: Weights to go on from, resolved.
        base_datasets: What the base was trained on, for ``training.replay``.
        environment: Key of the environment it runs in.
        nonce: Set to train an equal plan again.

    Raises:
        IndivisibleBatchError: The global batch cannot be shared by the ranks.
        DeepSpeedConflictError: A DeepSpeed key contradicts the plan.
        UnsupportedTrainingError: The method, the model or a key is refused; says why and what to do.
        InvalidRecordError: A hyperparameter has a value that the record refuses.
    """
    training = config.training
    plan = TrainingPlan(
        dataset=dataset,
        model=dict(model),
        base=base,
        method=training.method,
        num_nodes=training.nodes,
        nproc_per_node=training.gpus_per_node,
        hyperparameters=training.resolve(values),
        precision=_precision(config),
        zero_stage=zero_stage_of(training.deepspeed, _DEFAULT_ZERO_STAGE),
        deepspeed=dict(training.deepspeed),
        environment=environment,
        seed=training.seed,
        checkpoint_steps=training.checkpoint_steps,
        eval_steps=training.eval_steps,
        nonce=nonce,
        lora=_lora(config),
        replay=_replay(config, base, base_datasets),
        rewarm=_rewarm(config, base),
        gradient_checkpointing=training.gradient_checkpointing,
    )
    return _checked(plan)


def plan_trial(
    config: PipelineFile,
    *,
    dataset: DatasetVersion,
    model: Mapping[str, JsonValue],
    values: Mapping[str, JsonValue] | None = None,
    base: FileSet | None = None,
    base_datasets: Sequence[DatasetVersion] = (),
    environment: str = "",
) -> TrainingPlan:
    """Return the plan of one trial: the same training on one rank, ``sweep.max_steps`` long, without a model.

    The global batch stays that of the real training, and a trial begins where that begins, at the base and with the
    same replay: the values a trial finds hold for it. Raises as ``plan_training`` does.
    """
    plan = plan_training(
        config,
        dataset=dataset,
        model=model,
        values=values,
        base=base,
        base_datasets=base_datasets,
        environment=environment,
    )
    hyperparameters = config.training.resolve(values, max_steps=config.sweep.max_steps)
    trial = plan.evolve(
        purpose="trial",
        num_nodes=1,
        nproc_per_node=1,
        hyperparameters=hyperparameters.model_dump(),
        deepspeed={key: value for key, value in plan.deepspeed.items() if key not in _OF_ALL_RANKS},
        eval_steps=_rung(hyperparameters, plan.eval_steps),
    )
    return _checked(trial)


def _precision(config: PipelineFile) -> str:
    """Return what ``training.precision`` says, or, where it says nothing, what the DeepSpeed keys say."""
    given = config.training.precision
    return given if "precision" in config.training.model_fields_set else precision_of(config.training.deepspeed, given)


def _rung(hyperparameters: Hyperparameters, eval_steps: int) -> int:
    if hyperparameters.max_steps is None:
        return eval_steps
    return min(eval_steps, math.ceil(hyperparameters.max_steps / TRIAL_RUNGS))


def _lora(config: PipelineFile) -> LoraPlan | None:
    given = config.training.lora
    if config.training.method != "lora":
        if "lora" in config.training.model_fields_set:
            raise UnsupportedTrainingError(
                "training.lora",
                given.model_dump(exclude_unset=True),
                f"method {config.training.method} trains all weights",
                "use method lora, or remove the section",
            )
        return None
    alpha = 2.0 * given.rank if given.alpha is None else given.alpha
    return LoraPlan(rank=given.rank, alpha=alpha, dropout=given.dropout, targets=given.targets)


def _replay(config: PipelineFile, base: FileSet | None, old: Sequence[DatasetVersion]) -> ReplayPlan | None:
    share = config.training.replay
    if base is None or not share:
        return None
    if not old:
        raise UnsupportedTrainingError(
            "training.replay",
            share,
            "it is not known which dataset version the base was trained on",
            "use a registered base (model://name/version), or remove the key",
        )
    return ReplayPlan(datasets=tuple(old), share=share)


def _rewarm(config: PipelineFile, base: FileSet | None) -> float | None:
    training = config.training
    if base is None:
        return None
    if training.rewarm is None:
        return REWARM if training.method == "pretrain" else None
    return training.rewarm


def _checked(plan: TrainingPlan) -> TrainingPlan:
    """Return the plan if the trainer can run it."""
    model_type = plan.model.get("model_type")
    if plan.base is None and not isinstance(model_type, str):
        raise UnsupportedTrainingError(
            "model_type", model_type, "the model's JSON file does not say what it is", "add one such as deepseek_v3"
        )
    window, longest = plan.hyperparameters.sequence_length, plan.model.get("max_position_embeddings")
    if isinstance(longest, int) and window > longest:
        raise UnsupportedTrainingError(
            "sequence_length",
            window,
            f"the model has only max_position_embeddings={longest} positions",
            "lower the one or raise the other",
        )
    deepspeed_config(plan)
    return plan
