"""Before a training is submitted: does it fit, how long will it take, what will it cost?

Everything is arithmetic on the plan and the model's config: no weights, no device, no import of torch. Memory follows
the ZeRO paper (arXiv:1910.02054, section 3) with the copies DeepSpeed really holds; activations are counted tensor by
tensor; time is operations over peak at a stated utilisation. An estimate errs by some tenths, so it refuses only what
is beyond the memory that is there, and says where the memory would go and which change is the smallest that helps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from pydantic import Field, JsonValue

from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.records import Record, TrainingPlan
from deepseek_ops.training.deepspeed_config import micro_batch_of
from deepseek_ops.training.errors import IndivisibleBatchError
from deepseek_ops.training.memory import GIB, MemoryNeed, memory_need, offloads
from deepseek_ops.training.model_shape import ModelShape, model_shape
from deepseek_ops.training.schedule import total_steps

USABLE = 0.94
"""Share of a device's memory that a training can use; the rest is the driver's and fragmentation."""
MFU = 0.35
"""Model FLOP utilisation assumed where none was measured: what large runs on such devices report."""
_MAX_RANKS = 4096


@dataclass(frozen=True, slots=True)
class Device:
    """What one rank runs on."""

    name: str
    memory_gib: float
    peak_tflops: float
    """Dense peak for the plan's precision."""
    usd_per_hour: float
    host_memory_gib: float | None = None
    """Memory of one machine for what is offloaded; None: not checked."""


class PreflightReport(Record):
    """What a plan needs, and whether that is there."""

    plan: str = Field(description="Fingerprint of the TrainingPlan.")
    fits: bool
    reason: str = Field(description="One sentence: what decides.")
    device: str
    ranks: int
    parameters: int
    active_parameters: int = Field(description="Used by one token, embeddings included.")
    memory_gib: dict[str, float] = Field(description="Per rank and purpose; host_gib is per machine.")
    available_gib: float
    tokens: int | None = Field(default=None, description="Over all steps; None where the number of steps is not known.")
    seconds: float | None = None
    usd: float | None = None
    mfu: float = Field(description="Utilisation that the time assumes.")
    nearest: dict[str, JsonValue] | None = Field(
        default=None, description="Keys of the training section whose change makes it fit; None: none found, or fits."
    )


@dataclass(eq=False)
class PlanDoesNotFitError(PermanentError):
    """A training needs more than there is; nothing was submitted."""

    report: PreflightReport

    def __str__(self) -> str:
        report = self.report
        if report.nearest is None:
            return f"the training is not submitted: {report.reason}."
        changes = ", ".join(f"{key}: {value}" for key, value in report.nearest.items())
        return f"the training is not submitted: {report.reason}; the nearest plan that fits has {changes}."


def preflight(
    plan: TrainingPlan,
    device: Device,
    *,
    num_samples: int | None = None,
    mfu: float = MFU,
    budget_usd: float | None = None,
    budget_hours: float | None = None,
) -> PreflightReport:
    """Return what the plan needs on these devices, and the nearest plan that fits where it does not.

    Args:
        plan: The plan.
        device: What each rank gets.
        num_samples: Samples of one epoch; None: time and money are known only for plans with ``max_steps``.
        mfu: Share of the peak that the model's own operations reach.
        budget_usd: What the training may cost.
        budget_hours: How long it may take.

    Raises:
        UnsupportedTrainingError: The model's family is not known by formula, or a number is missing.
        IndivisibleBatchError: The ranks cannot share the global batch.
    """
    shape = model_shape(plan.model)
    need = memory_need(plan, shape)
    tokens = _tokens(plan, num_samples)
    speed = plan.world_size * device.peak_tflops * 1e12 * mfu
    seconds = None if tokens is None else tokens * _operations(plan, shape) / speed
    usd = None if seconds is None else seconds / 3600 * plan.world_size * device.usd_per_hour
    too_much = _too_much(need, device)
    limit = _over_budget(seconds, usd, budget_usd, budget_hours)
    return PreflightReport(
        plan=plan.fingerprint,
        fits=not too_much and not limit,
        reason=too_much or limit or f"{need.total / GIB:.1f} GiB of {device.memory_gib * USABLE:.1f} GiB are needed",
        device=device.name,
        ranks=plan.world_size,
        parameters=shape.total,
        active_parameters=shape.active,
        memory_gib=need.dump(),
        available_gib=device.memory_gib * USABLE,
        tokens=tokens,
        seconds=seconds,
        usd=usd,
        mfu=mfu,
        nearest=_nearest(plan, shape, device) if too_much else None,
    )


def require_fit(report: PreflightReport) -> PreflightReport:
    """Return the report of a plan that fits. Raises PlanDoesNotFitError."""
    if not report.fits:
        raise PlanDoesNotFitError(report)
    return report


def _operations(plan: TrainingPlan, shape: ModelShape) -> float:
    """Return the operations of one token, forward and backward: 6 per weight (PaLM, arXiv:2204.02311, appendix B)."""
    pairs = 6 * shape.layers * shape.attention_width * plan.hyperparameters.sequence_length
    useful = (4 if plan.lora is not None else 6) * shape.multiplied + pairs
    return useful * 4 / 3 if plan.gradient_checkpointing else useful


def _tokens(plan: TrainingPlan, num_samples: int | None) -> int | None:
    values = plan.hyperparameters
    if values.max_steps is None and num_samples is None:
        return None
    steps = total_steps(
        max_steps=values.max_steps, epochs=values.epochs, num_samples=num_samples or 0, batch_size=values.batch_size
    )
    return steps * values.batch_size * values.sequence_length


def _too_much(need: MemoryNeed, device: Device) -> str:
    available = device.memory_gib * USABLE
    if need.total / GIB > available:
        name, most = need.largest
        return (
            f"each rank needs {need.total / GIB:.1f} GiB and a {device.name} has {available:.1f} GiB to use; "
            f"the most of it is {most / GIB:.1f} GiB for {name}"
        )
    if device.host_memory_gib is not None and need.host / GIB > device.host_memory_gib * USABLE:
        return f"offloading needs {need.host / GIB:.0f} GiB of each machine's {device.host_memory_gib:.0f} GiB"
    return ""


def _over_budget(seconds: float | None, usd: float | None, budget_usd: float | None, budget_hours: float | None) -> str:
    if usd is not None and budget_usd is not None and usd > budget_usd:
        paid = f"{budget_usd / usd:.0%}"
        return f"it would cost {usd:.2f} USD and the budget is {budget_usd:.2f} USD, which pays for {paid} of it"
    if seconds is not None and budget_hours is not None and seconds / 3600 > budget_hours:
        return f"it would take {seconds / 3600:.1f} h and the budget is {budget_hours:.1f} h"
    return ""


def _nearest(plan: TrainingPlan, shape: ModelShape, device: Device) -> dict[str, JsonValue] | None:
    """Return the changes of the first variant that fits: those that cost nothing come before those that cost time,
    and more devices, which cost money, come last."""
    for changes, variant in _variants(plan):
        try:
            need = memory_need(variant, shape)
        except IndivisibleBatchError:
            continue
        if not _too_much(need, device):
            return changes
    return None


def _variants(plan: TrainingPlan) -> Iterator[tuple[dict[str, JsonValue], TrainingPlan]]:
    factors = [2**power for power in range(13) if plan.world_size * 2**power <= max(_MAX_RANKS, plan.world_size)]
    spread = plan.deepspeed.get("expert_parallel")
    stages = list(range(plan.zero_stage, 3 if spread else 4))
    keeps = [True] if plan.gradient_checkpointing else [False, True]
    offloaded = [True] if offloads(plan).optimizer else [False, True]
    for factor, offload, stage, checkpointing in product(factors, offloaded, stages, keeps):
        if plan.hyperparameters.batch_size % (plan.world_size * factor) or (offload and stage == 0):
            continue
        for micro in _micro_batches(plan, factor):
            yield _variant(plan, factor, offload, stage, checkpointing, micro)


def _micro_batches(plan: TrainingPlan, factor: int) -> list[int]:
    share = plan.hyperparameters.batch_size // (plan.world_size * factor)
    largest = min(share, micro_batch_of(plan, plan.world_size))
    return [size for size in range(largest, 0, -1) if share % size == 0]


def _variant(
    plan: TrainingPlan, factor: int, offload: bool, stage: int, checkpointing: bool, micro: int
) -> tuple[dict[str, JsonValue], TrainingPlan]:
    zero: dict[str, JsonValue] = {}
    changes: dict[str, JsonValue] = {}
    if micro != micro_batch_of(plan, plan.world_size):
        changes["deepspeed.train_micro_batch_size_per_gpu"] = micro
    if checkpointing and not plan.gradient_checkpointing:
        changes["gradient_checkpointing"] = True
    if stage != plan.zero_stage:
        changes["deepspeed.zero_optimization.stage"] = zero["stage"] = stage
    if offload and not offloads(plan).optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
        changes["deepspeed.zero_optimization.offload_optimizer"] = {"device": "cpu"}
    if factor > 1:
        changes["nodes"] = plan.num_nodes * factor
    given = plan.deepspeed.get("zero_optimization")
    keys = {key: value for key, value in plan.deepspeed.items() if key != "gradient_accumulation_steps"}
    keys["zero_optimization"] = {**(given if isinstance(given, dict) else {}), **zero}
    keys["train_micro_batch_size_per_gpu"] = micro
    variant = plan.evolve(
        num_nodes=plan.num_nodes * factor, zero_stage=stage, gradient_checkpointing=checkpointing, deepspeed=keys
    )
    return changes, variant
