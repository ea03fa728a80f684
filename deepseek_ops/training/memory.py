"""What a training holds in memory, per rank, by formula."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from deepseek_ops.core.records import TrainingPlan
from deepseek_ops.training.deepspeed_config import micro_batch_of
from deepseek_ops.training.model_shape import ModelShape

GIB = 1 << 30
_ADAM = 8
"""Bytes per parameter of Adam's two moments, float32."""
_MASTER = 4
"""Bytes per parameter of the float32 copy that DeepSpeed's ZeRO optimisers step on."""
_BUCKET = 500_000_000
"""Numbers in one reduction or gathering of DeepSpeed, unless configured."""
_PREFETCHED = 50_000_000
_RUNTIME = GIB
"""Driver, kernels and the buffers of collectives."""


@dataclass(frozen=True, slots=True)
class Offloads:
    """What the plan keeps in the memory of the machine instead of the device's."""

    optimizer: bool
    parameters: bool


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """Bytes per rank and purpose."""

    weights: float
    gradients: float
    optimizer: float
    gathered: float
    activations: float
    logits: float
    buffers: float
    host: float
    """Bytes per machine for what is offloaded."""

    @property
    def total(self) -> float:
        """Bytes on the device."""
        return sum(self._parts().values())

    @property
    def largest(self) -> tuple[str, float]:
        """The purpose that takes the most, and its bytes."""
        return max(self._parts().items(), key=lambda part: part[1])

    def dump(self) -> dict[str, float]:
        """Return GiB per purpose."""
        parts = {**self._parts(), "total": self.total, "host": self.host}
        return {name: round(size / GIB, 3) for name, size in parts.items()}

    def _parts(self) -> dict[str, float]:
        return {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "gathered layers": self.gathered,
            "activations": self.activations,
            "logits": self.logits,
            "buffers": self.buffers,
        }


def offloads(plan: TrainingPlan) -> Offloads:
    """Return what the plan's DeepSpeed keys offload."""
    zero = plan.deepspeed.get("zero_optimization")
    section = zero if isinstance(zero, Mapping) else {}

    def away(key: str) -> bool:
        part = section.get(key)
        return isinstance(part, Mapping) and part.get("device") in ("cpu", "nvme")

    return Offloads(optimizer=away("offload_optimizer"), parameters=away("offload_param") and plan.zero_stage == 3)


def memory_need(plan: TrainingPlan, shape: ModelShape) -> MemoryNeed:
    """Return what each rank holds at its fullest: in the backward pass of a micro-batch.

    Raises IndivisibleBatchError when the ranks cannot share the global batch.
    """
    width = 2 if plan.precision == "bf16" else 4
    ranks, stage, away = plan.world_size, plan.zero_stage, offloads(plan)
    trained = _adapters(plan, shape) if plan.lora is not None else shape.total
    held = _held(plan, shape)  # with expert parallelism a rank holds its own experts only
    own = trained if plan.lora is not None else held
    weights = (held + (trained if plan.lora is not None else 0)) * width / (ranks if stage == 3 else 1)
    gradients = own * width / (ranks if stage >= 2 else 1)
    master = 0 if stage == 0 and width == 4 else _MASTER
    states = trained * (master + _ADAM) / (ranks if stage >= 1 else 1)
    shifted = states + trained * _MASTER / ranks if away.optimizer else 0.0
    gathered = 0.0
    if stage == 3:
        gathered = 2 * shape.largest_layer * width + min(_PREFETCHED, shape.total) * width  # the next is on its way
    return MemoryNeed(
        weights=0.0 if away.parameters else weights,
        gradients=gradients,
        optimizer=0.0 if away.optimizer else states,
        gathered=gathered,
        activations=_activations(plan, shape, width),
        logits=_samples(plan) * shape.vocabulary * (2 * width + 8),  # and their gradients; both in float32 as well
        buffers=_RUNTIME + (2 * min(_BUCKET, trained) * width if stage else 0),
        host=(shifted + (weights if away.parameters else 0.0)) * plan.nproc_per_node,
    )


def _activations(plan: TrainingPlan, shape: ModelShape, width: int) -> float:
    tokens = _samples(plan)
    if plan.gradient_checkpointing:
        return tokens * width * (shape.layers * shape.hidden + shape.widest_layer)
    return tokens * width * shape.layers * shape.activation_width


def _samples(plan: TrainingPlan) -> int:
    """Return the tokens of one micro-batch."""
    return micro_batch_of(plan, plan.world_size) * plan.hyperparameters.sequence_length


def _held(plan: TrainingPlan, shape: ModelShape) -> float:
    section = plan.deepspeed.get("expert_parallel")
    size = section.get("autoep_size", plan.world_size) if isinstance(section, Mapping) and section.get("enabled") else 1
    return shape.total - shape.experts + shape.experts / (size if isinstance(size, int) else 1)


def _adapters(plan: TrainingPlan, shape: ModelShape) -> int:
    """Return about how many weights the adapters of the attention have: two of rank x width per layer of it."""
    rank = plan.lora.rank if plan.lora is not None else 0
    return rank * shape.layers * 4 * (2 * shape.hidden + shape.attention_width)
