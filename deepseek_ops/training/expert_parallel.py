"""Expert parallelism (DeepSpeed AutoEP): which plans it can carry, and the keys it needs."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

from deepseek_ops.core.records import TrainingPlan
from deepseek_ops.training.errors import DeepSpeedConflictError, UnsupportedTrainingError

KEY = "expert_parallel"
PRESETS: Mapping[str, str] = {"deepseek_v2": "deepseek_v2", "deepseek_v3": "deepseek_v3"}
"""Model type -> how DeepSpeed names its layers."""
_WHERE = f"training.deepspeed.{KEY}"
_MAX_STAGE = 2


def expert_parallel_section(plan: TrainingPlan, world_size: int) -> dict[str, JsonValue] | None:
    """Return the section for DeepSpeed; None where the plan asks for no expert parallelism.

    Raises:
        UnsupportedTrainingError: The model, the method, the ZeRO stage or the number of ranks does not allow it.
        DeepSpeedConflictError: ``preset_model`` names another model.
    """
    given = plan.deepspeed.get(KEY)
    if not isinstance(given, Mapping) or not given.get("enabled"):
        return None
    size = given.get("autoep_size", world_size)
    preset = PRESETS.get(str(plan.model.get("model_type")))
    _check_model(plan, preset)
    _check_size(plan, size, world_size)
    if given.get("preset_model", preset) != preset:
        raise DeepSpeedConflictError(f"{KEY}.preset_model", preset, given["preset_model"], "the model's type")
    if given.get("load_balance_coeff") is not None:
        raise UnsupportedTrainingError(
            f"{_WHERE}.load_balance_coeff",
            given["load_balance_coeff"],
            "the trainer itself moves the router's bias, and two hands on it would fight",
            "set the hyperparameter bias_update_rate",
        )
    return {**given, "enabled": True, "autoep_size": size, "preset_model": preset}


def _check_model(plan: TrainingPlan, preset: str | None) -> None:
    if preset is None:
        raise UnsupportedTrainingError(
            _WHERE, plan.model.get("model_type"), "DeepSpeed does not know its experts", "use " + " or ".join(PRESETS)
        )
    if plan.lora is not None:
        raise UnsupportedTrainingError(
            _WHERE, "lora", "adapters are too small to be worth spreading experts over ranks", "remove one of the two"
        )
    if plan.zero_stage > _MAX_STAGE:
        raise UnsupportedTrainingError(
            f"{_WHERE} with zero_optimization.stage",
            plan.zero_stage,
            "experts that are spread over ranks and then cut again cannot be gathered for publishing",
            "use stage 1 or 2: each rank holds only its own experts anyway",
        )


def _check_size(plan: TrainingPlan, size: JsonValue, world_size: int) -> None:
    experts = plan.model.get("n_routed_experts")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1 or world_size % size:
        raise UnsupportedTrainingError(
            f"{_WHERE}.autoep_size", size, f"it does not divide the {world_size} ranks", "use a divisor of them"
        )
    if isinstance(experts, int) and experts % size:
        raise UnsupportedTrainingError(
            f"{_WHERE}.autoep_size", size, f"it does not divide the {experts} experts of a layer", "use a divisor"
        )
