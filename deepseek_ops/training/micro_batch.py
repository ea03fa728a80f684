"""The same training in smaller bites: what is done after a device ran out of memory."""

from __future__ import annotations

from dataclasses import dataclass

from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.records import TrainingPlan
from deepseek_ops.training.deepspeed_config import micro_batch_of

PAYLOAD_KEY = "micro_batch_divisor"
"""Key of a train job's payload: by how much its micro-batches are smaller than the plan's. It decides no weights."""


@dataclass(eq=False)
class SmallestBatchError(PermanentError):
    """A training ran out of memory, and its micro-batches cannot be made smaller."""

    micro_batch: int
    divisor: int

    def __str__(self) -> str:
        return (
            f"a micro-batch of {self.micro_batch} samples cut into {self.divisor} does not fit into memory either; "
            "set training.gradient_checkpointing, a higher ZeRO stage, offload, or more ranks."
        )


def in_smaller_bites(plan: TrainingPlan, world_size: int, divisor: int) -> TrainingPlan:
    """Return the plan with micro-batches ``divisor`` times smaller and as many more of them: the same global batch.

    Only for configuring an engine: the plan that names the run and its results stays the one that was planned. Sums
    are taken in another order, so losses differ in their last bits from those of larger micro-batches.

    Raises:
        SmallestBatchError: One sample is not enough bites.
    """
    if divisor <= 1:
        return plan
    whole = micro_batch_of(plan, world_size)
    fitting = [size for size in range(1, whole + 1) if whole % size == 0 and size * divisor <= whole]
    if not fitting:
        raise SmallestBatchError(whole, divisor)
    return plan.evolve(deepspeed={**plan.deepspeed, "train_micro_batch_size_per_gpu": fitting[-1]})
