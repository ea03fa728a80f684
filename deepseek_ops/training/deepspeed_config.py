"""From a training plan to the DeepSpeed configuration that runs it, with the user's own keys merged in.

Three kinds of keys: what the plan decides (a user's other value is an error that names both), what is only our default
(the user's value wins), and everything else (passed through). ``"auto"``, the Hugging Face spelling, means ours.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from deepseek_ops.core.records import TrainingPlan
from deepseek_ops.training.errors import DeepSpeedConflictError, IndivisibleBatchError, UnsupportedTrainingError
from deepseek_ops.training.expert_parallel import KEY as EXPERT_PARALLEL
from deepseek_ops.training.expert_parallel import expert_parallel_section

MAX_MICRO_TOKENS = 16_384
"""Tokens of one forward pass of one rank, where the user names no micro-batch."""

LEAF_MODULES = tuple(
    f"transformers.models.{module}.modeling_{module}.{name}"
    for module, name in (
        ("deepseek_v2", "DeepseekV2Moe"),
        ("deepseek_v3", "DeepseekV3MoE"),
        ("deepseek_v32", "DeepseekV32MoE"),
        ("deepseek_v4", "DeepseekV4SparseMoeBlock"),
    )
)
"""MoE blocks that ZeRO-3 must fetch as a whole: DeepSpeed's own list has no DeepSeek class in it."""

_ZERO = "zero_optimization"
_REFUSED = {
    "scheduler": ("the learning rate follows the plan's warm-up and cosine", "set learning_rate and warmup_ratio"),
    "fp16": ("half precision needs a loss scaler that a resume cannot reproduce exactly", "use bf16"),
    "amp": ("apex is not supported", "use bf16"),
}


def zero_stage_of(keys: Mapping[str, JsonValue], default: int) -> int:
    """Return the ZeRO stage that the user's DeepSpeed keys ask for."""
    section = keys.get(_ZERO)
    stage = section.get("stage", default) if isinstance(section, Mapping) else default
    return stage if isinstance(stage, int) else default


def precision_of(keys: Mapping[str, JsonValue], default: str = "fp32") -> str:
    """Return ``bf16`` when the user's DeepSpeed keys enable it."""
    section = keys.get("bf16")
    enabled = section.get("enabled") if isinstance(section, Mapping) else None
    return {True: "bf16", False: "fp32"}.get(enabled, default) if isinstance(enabled, bool) else default


def micro_batch_of(plan: TrainingPlan, world_size: int) -> int:
    """Return the samples of one forward pass: the user's, or the largest even share within MAX_MICRO_TOKENS.

    Raises IndivisibleBatchError when the global batch cannot be kept on ``world_size`` ranks.
    """
    batch = plan.hyperparameters.batch_size
    wanted = plan.deepspeed.get("train_micro_batch_size_per_gpu")
    if isinstance(wanted, int) and not isinstance(wanted, bool):
        if wanted < 1 or batch % (wanted * world_size):
            raise IndivisibleBatchError(batch, wanted, world_size)
        return wanted
    if batch % world_size:
        raise IndivisibleBatchError(batch, 1, world_size)
    share = batch // world_size
    limit = max(1, MAX_MICRO_TOKENS // plan.hyperparameters.sequence_length)
    return next(size for size in range(min(share, limit), 0, -1) if share % size == 0)


def deepspeed_config(plan: TrainingPlan, *, world_size: int | None = None) -> dict[str, JsonValue]:
    """Return the configuration for ``deepspeed.initialize`` on ``world_size`` ranks (default: the plan's own).

    Raises:
        IndivisibleBatchError: The global batch cannot be kept.
        DeepSpeedConflictError: A key of the user contradicts the plan; the error names both values.
        UnsupportedTrainingError: A key, or the model's experts implementation, is refused.
    """
    _refuse(plan)
    world = world_size or plan.world_size
    decided = _decided(plan, world)
    _check(plan.deepspeed, decided)
    config = _merge(_defaults(plan), plan.deepspeed)
    for dotted, (value, _) in decided.items():
        config = _merge(config, _nested(dotted, value))
    if plan.zero_stage == 3:
        _add_leaf_modules(config)
    experts = expert_parallel_section(plan, world)
    if experts is not None:
        config[EXPERT_PARALLEL] = experts
    return config


def _refuse(plan: TrainingPlan) -> None:
    for key, (reason, remedy) in _REFUSED.items():
        section = plan.deepspeed.get(key)
        if section is not None and not (isinstance(section, Mapping) and section.get("enabled") is False):
            raise UnsupportedTrainingError(f"training.deepspeed.{key}", section, reason, remedy)
    for key in ("experts_implementation", "_experts_implementation"):
        if plan.model.get(key) == "eager":
            raise UnsupportedTrainingError(
                f"model.{key}",
                "eager",
                "ranks visit different experts, and under ZeRO-3 they then wait for each other for ever",
                "remove the key; grouped_mm is used",
            )


def _decided(plan: TrainingPlan, world: int) -> dict[str, tuple[JsonValue, str]]:
    """Return dotted key -> (value, where it comes from) of what only the plan may say."""
    values, micro = plan.hyperparameters, micro_batch_of(plan, world)
    searched = "the hyperparameter "
    return {
        "train_batch_size": (values.batch_size, searched + "batch_size"),
        "train_micro_batch_size_per_gpu": (micro, searched + "batch_size"),
        "gradient_accumulation_steps": (values.batch_size // (micro * world), f"batch_size on {world} ranks"),
        "gradient_clipping": (values.max_grad_norm, searched + "max_grad_norm"),
        "optimizer.type": ("AdamW", "the trainer"),
        "optimizer.params.lr": (values.learning_rate, searched + "learning_rate"),
        "optimizer.params.betas": ([0.9, values.adam_beta2], searched + "adam_beta2"),
        "optimizer.params.weight_decay": (values.weight_decay, searched + "weight_decay"),
        "zero_optimization.stage": (plan.zero_stage, "the plan's zero_stage"),
        "bf16.enabled": (plan.precision == "bf16", "the plan's precision"),
    }


def _defaults(plan: TrainingPlan) -> dict[str, JsonValue]:
    zero: dict[str, JsonValue] = {"stage3_gather_16bit_weights_on_model_save": True} if plan.zero_stage == 3 else {}
    return {
        # torch's own Adam: DeepSpeed's kernels would be compiled on the spot, which takes minutes and a compiler
        "optimizer": {"params": {"eps": 1e-8, "torch_adam": True}},
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        _ZERO: zero,
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }


def _check(user: Mapping[str, JsonValue], decided: Mapping[str, tuple[JsonValue, str]]) -> None:
    for dotted, (ours, source) in decided.items():
        theirs: JsonValue = dict(user)
        for part in dotted.split("."):
            theirs = theirs.get(part) if isinstance(theirs, Mapping) else None
        if theirs is not None and theirs != "auto" and theirs != ours:
            raise DeepSpeedConflictError(dotted, ours, theirs, source)


def _nested(dotted: str, value: JsonValue) -> dict[str, JsonValue]:
    head, _, rest = dotted.partition(".")
    return {head: _nested(rest, value) if rest else value}


def _merge(base: Mapping[str, JsonValue], over: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return ``base`` with ``over`` laid on top, section by section; ``auto`` leaves what is there."""
    merged: dict[str, JsonValue] = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, Mapping):
            merged[key] = _merge(below if isinstance(below, Mapping) else {}, value)
        elif value != "auto":
            merged[key] = value
    return merged


def _add_leaf_modules(config: dict[str, JsonValue]) -> None:
    given = _section(config, _ZERO).get("leaf_module")
    section = dict(given) if isinstance(given, Mapping) else {}
    classes = section.get("classes")
    listed = [classes] if isinstance(classes, str) else list(classes) if isinstance(classes, list) else []
    section["classes"] = [*listed, *(name for name in LEAF_MODULES if name not in listed)]
    config[_ZERO] = {**_section(config, _ZERO), "leaf_module": section}


def _section(config: Mapping[str, JsonValue], key: str) -> Mapping[str, JsonValue]:
    found = config.get(key)
    return found if isinstance(found, Mapping) else {}
