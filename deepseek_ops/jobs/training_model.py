"""The model a plan describes, and the balance of its experts.

DeepSeek-V3 balances experts without an auxiliary loss: a bias per expert is added to the router's scores when it picks
the top k, and the *trainer* moves it after every step, up for experts that got too few tokens, down for the others.
``transformers`` only carries the buffer, so the update is ours. The bias stays float32: its steps (0.001) vanish in
bfloat16, and rounded biases silently route tokens elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_ops.core.records import TrainingPlan
from deepseek_ops.jobs.training_lora import add_adapters
from deepseek_ops.training.errors import UnsupportedTrainingError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_BIAS = "e_score_correction_bias"
ROUTER_KEYS: Mapping[str, Mapping[str, str]] = {
    "deepseek_v3": {"topk_method": "noaux_tc", "scoring_func": "sigmoid"},
    "deepseek_v32": {"topk_method": "noaux_tc", "scoring_func": "sigmoid"},
}
"""Keys that serving engines need in config.json; without them vLLM routes by softmax and serves a wrong model."""


def build_model(plan: TrainingPlan, base: Path | None) -> PreTrainedModel:
    """Return the model in training mode with float32 weights: from ``base``, or random by the plan's seed.

    Method lora adds its adapters and freezes everything else.

    Raises UnsupportedTrainingError when transformers does not know the model's type or refuses its configuration.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(plan.seed)
    if base is not None:
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    else:
        values = {key: value for key, value in plan.model.items() if key != "transformers_version"}
        model_type = str(values.pop("model_type", ""))
        try:
            config = AutoConfig.for_model(model_type, **{**ROUTER_KEYS.get(model_type, {}), **values})
            config.dtype = torch.float32
            model = AutoModelForCausalLM.from_config(config)
        except (ValueError, TypeError, KeyError) as error:
            raise UnsupportedTrainingError(
                "model", model_type, f"transformers refuses it: {error}", "correct the model's JSON file"
            ) from error
    use_grouped_experts(model)
    if plan.lora is not None:
        model = add_adapters(model, plan.lora)
    if plan.gradient_checkpointing:
        # the other variant drops gradients where a layer's input needs none, as all do below the first adapter
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.config.use_cache = True
    model.train()
    return model


def use_grouped_experts(model: PreTrainedModel) -> None:
    """Run all experts of a layer in one kernel: the loop of ``eager`` differs per rank and hangs under ZeRO-3."""
    if any(hasattr(module, "gate_up_proj") and hasattr(module, "num_experts") for module in model.modules()):
        model.set_experts_implementation("grouped_mm")


def decay_groups(model: PreTrainedModel, weight_decay: float) -> list[dict[str, object]]:
    """Return two parameter groups: matrices, which decay, and vectors (norms), which do not."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, object]] = [
        {"name": "matrices", "params": [one for one in trained if one.ndim > 1], "weight_decay": weight_decay},
        {"name": "vectors", "params": [one for one in trained if one.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]  # expert parallelism wants the names


class ExpertBalance:
    """Counts the tokens each expert gets in a step and moves the routers' biases. Empty for dense models.

    Made from the *engine's* module: expert parallelism puts routers of its own in place of the model's.
    """

    def __init__(self, model: torch.nn.Module, rate: float) -> None:
        self.rate = rate
        self._used: torch.Tensor | None = None
        self._biases = [module for module in model.modules() if getattr(module, _BIAS, None) is not None]
        self._counts: list[torch.Tensor | None] = [None] * len(self._biases)
        for number, router in enumerate(self._biases):
            router.register_forward_hook(self._counter(number))

    def only(self, used: torch.Tensor | None) -> None:
        """Count only the tokens of the next batches that ``used`` (batch x length, bool) names; None: all."""
        self._used = used

    @property
    def sizes(self) -> list[int]:
        """Experts per layer."""
        return [int(getattr(router, _BIAS).numel()) for router in self._biases]

    def take_counts(self) -> torch.Tensor:
        """Return this rank's tokens per expert since the last call, all layers in one float64 vector."""
        import torch

        taken = [
            torch.zeros(size, dtype=torch.float64) if count is None else count.to("cpu", torch.float64)
            for count, size in zip(self._counts, self.sizes, strict=True)
        ]
        self._counts = [None] * len(self._biases)
        return torch.cat(taken) if taken else torch.zeros(0, dtype=torch.float64)

    def update(self, counts: torch.Tensor) -> None:
        """Move every bias one step towards an even load, given the counts summed over all ranks."""
        import torch

        with torch.no_grad():
            for router, count in zip(self._biases, counts.split(self.sizes), strict=True):
                bias = getattr(router, _BIAS)
                bias += self.rate * torch.sign(count.mean() - count).to(bias)

    def load(self, counts: torch.Tensor) -> dict[str, float]:
        """Return the least and the most loaded expert of any layer, as a multiple of an even share."""
        if not self._biases:
            return {}
        shares = [count / count.mean().clamp_min(1.0) for count in counts.split(self.sizes)]
        return {
            "expert_load_min": min(float(share.min()) for share in shares),
            "expert_load_max": max(float(share.max()) for share in shares),
        }

    def _counter(self, number: int) -> object:
        import torch

        size = self.sizes[number]

        def count(module: torch.nn.Module, _inputs: object, outputs: tuple[torch.Tensor, ...]) -> None:
            if not module.training or _recomputing():
                return
            chosen = next(output for output in outputs if not output.is_floating_point())
            if self._used is not None:
                chosen = chosen.reshape(len(self._used), -1)[self._used]
            counts = torch.bincount(chosen.detach().reshape(-1), minlength=size)
            held = self._counts[number]
            self._counts[number] = counts if held is None else held + counts

        return count


def _recomputing() -> bool:
    """Return whether a checkpointed layer runs for the second time, within the backward pass."""
    import torch

    return bool(torch._C._current_graph_task_id() != -1)
