"""The global batch of a script's Trainer: the same samples in every step, however many ranks it goes on with.

A Trainer's step is ``per_device_train_batch_size x gradient_accumulation_steps x ranks`` samples, so on half the ranks
it would be half as large, and the resumed position, which counts steps, would name samples that were seen before. Here
the accumulation follows the ranks, for as long as one train() lasts. That is exact to the sample because accelerate
deals micro-batches out in turn: step ``k`` of ``g`` samples takes ``[k * g, (k + 1) * g)`` of the epoch's order on any
number of ranks, and the order comes from the seed alone. Where the order itself follows the accumulation, the state
cannot be cut anew, or the numbers do not divide, the training is refused with the numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from pydantic import JsonValue

from deepseek_ops.core.errors import PermanentError

if TYPE_CHECKING:
    from transformers import Trainer

    from deepseek_ops.core.records import TrainingPlan

_ORDERED_BY_STEP = ("group_by_length", "batch_rebalance")
"""Sampling strategies of transformers 5.23 whose order of samples follows from the accumulation."""
_DEALT_BY_STEP = "steps_per_generation"
"""Argument of TRL's trainers that generate: their batches of prompts are cut by the accumulation they began with."""


@dataclass(eq=False)
class UnkeptBatchError(PermanentError):
    """A script cannot go on with this many ranks: its steps would not be those that it began with."""

    script: str
    ranks: int
    before: int
    """Ranks that it began with."""
    why: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.script} was trained by {self.before} ranks and cannot go on with {self.ranks}: {self.why}. " + (
            self.remedy
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """What one step of a training is."""

    samples: int
    """Over all ranks."""
    ranks: int
    steps_per_epoch: int = 0
    """0 where the data set has no length."""

    def dump(self) -> dict[str, JsonValue]:
        """Return it as JSON."""
        return {"samples": self.samples, "ranks": self.ranks, "steps_per_epoch": self.steps_per_epoch}


class Batches:
    """Keeps the batch of each train() of one script."""

    def __init__(self, plan: TrainingPlan, script: str, say: Callable[..., None]) -> None:
        self._planned = Batch(plan.hyperparameters.batch_size, plan.world_size)
        self._script, self._say = script, say
        self._before: Batch | None = None
        self._now = self._planned

    def dump(self) -> dict[str, JsonValue]:
        """Return what a checkpoint has to remember."""
        return {"batch": self._now.dump()}

    @contextmanager
    def kept(self, trainer: Trainer, state: Mapping[str, JsonValue] | None) -> Iterator[None]:
        """Have the Trainer accumulate as much as its step needs on these ranks; ``state`` is that of its checkpoint.

        Raises UnkeptBatchError.
        """
        args = trainer.args
        own, here = args.gradient_accumulation_steps, _batch_of(trainer)
        self._before = None if state is None else self._told(state, here)
        samples = self._scaled(here, self._planned.ranks) if self._before is None else self._before.samples
        steps = self._accumulation(samples, here, own)
        if steps != own or (self._before is not None and self._before.ranks != here.ranks):
            self._require_orderly(trainer, here.ranks, changes=steps != own)
        if steps != own:
            self._say("batch_kept", samples=samples, ranks=here.ranks, accumulation=steps, instead_of=own)
        self._now = Batch(samples, here.ranks)
        args.gradient_accumulation_steps = steps
        try:
            yield
        finally:
            args.gradient_accumulation_steps = own

    def begun(self, batches: object, accumulation: int) -> None:
        """Take the loader of the training's batches. Raises UnkeptBatchError where an epoch has other steps now."""
        try:
            length = len(batches) if isinstance(batches, Sized) else 0
        except TypeError:  # a loader of a data set without a length has __len__ all the same
            length = 0
        steps = math.ceil(length / accumulation)
        before, self._now = self._before, Batch(self._now.samples, self._now.ranks, steps)
        if before is None or before.ranks == self._now.ranks or before.steps_per_epoch in (0, steps):
            return
        why = f"its epoch of {before.steps_per_epoch} steps would have {steps}, so the samples behind it are not known"
        raise self._refused(self._now.ranks, why, "Leave dataloader_drop_last away, or run it", before=before.ranks)

    def _told(self, state: Mapping[str, JsonValue], here: Batch) -> Batch:
        """Return the batch of a checkpoint. One of an earlier release knows only its ranks."""
        told = state.get("batch")
        if isinstance(told, dict):
            return Batch(*(int(str(told[name])) for name in ("samples", "ranks", "steps_per_epoch")))
        ranks = int(str(state.get("world_size", here.ranks)))
        return Batch(self._scaled(here, ranks), ranks)

    def _scaled(self, here: Batch, ranks: int) -> int:
        """Return the samples of a step on that many ranks, of a script that has ``here`` on these.

        One whose step is the plan's batch shares it among its ranks by itself.
        """
        if here.samples == self._planned.samples:
            return here.samples
        samples = Fraction(here.samples * ranks, here.ranks)
        if samples.denominator != 1:
            why = f"{here.samples} samples a step on {here.ranks} ranks are {float(samples):g} on {ranks}"
            raise self._refused(here.ranks, why, "Run it", before=ranks)
        return samples.numerator

    def _accumulation(self, samples: int, here: Batch, own: int) -> int:
        steps, odd = divmod(samples * own, here.samples)
        if not odd:
            return steps
        at_once = here.samples // own
        why = f"its steps are of {samples} samples, and {here.ranks} ranks take {at_once} at a time"
        sizes = [str(n) for n in range(1, samples + 1) if samples * here.ranks % (at_once * n) == 0]
        remedy = f"Let per_device_train_batch_size x ranks divide {samples}, or run it"
        before = self._planned.ranks if self._before is None else self._before.ranks
        raise self._refused(here.ranks, why, remedy, before=before, sizes=sizes)

    def _require_orderly(self, trainer: Trainer, ranks: int, *, changes: bool) -> None:
        """Raise UnkeptBatchError where another accumulation would bring other samples, or the state is cut by ranks."""
        strategy = getattr(trainer.args, "train_sampling_strategy", "")
        why = ""
        if trainer.is_deepspeed_enabled:
            why = "DeepSpeed's checkpoint of a script is cut by ranks"
        elif changes and strategy in _ORDERED_BY_STEP:
            why = f"train_sampling_strategy={strategy!r} would order the samples differently"
        elif changes and hasattr(trainer.args, _DEALT_BY_STEP):
            why = f"{type(trainer).__name__} cuts its batches of prompts by the accumulation it began with"
        if why:
            before = self._planned.ranks if self._before is None else self._before.ranks
            raise self._refused(ranks, why, "Run it", before=before)

    def _refused(
        self, ranks: int, why: str, remedy: str, *, before: int, sizes: list[str] | None = None
    ) -> UnkeptBatchError:
        on = " or ".join(sizes or [str(before)])
        return UnkeptBatchError(self._script, ranks, before, why, f"{remedy} on {on} ranks.")


def _batch_of(trainer: Trainer) -> Batch:
    """Return the step that the script's own settings come to on the ranks that there are."""
    args = trainer.args
    samples, ranks = trainer.get_total_train_batch_size(args), args.world_size
    if args.accelerator_config.split_batches:  # then a batch is shared among the ranks
        samples = trainer._train_batch_size * args.gradient_accumulation_steps
    return Batch(samples, ranks)
