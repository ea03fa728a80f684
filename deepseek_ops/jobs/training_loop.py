"""The training loop: one optimiser step after the other, all ranks in step, nothing but arithmetic in the way.

Everything random is a function of (seed, step, rank): batches, learning rate, dropout. What ranks have to agree on
(mean loss, NaN anywhere, expert loads, a request to stop) travels in one all-reduce per step; what rank 0 decides about
it in one broadcast, so that every rank acts in the same step (``training_actions``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from deepseek_ops.core.records import TrainingPlan
from deepseek_ops.jobs.agreement import any_rank
from deepseek_ops.jobs.pruned import is_pruned
from deepseek_ops.jobs.training_actions import Actions, Ending, saveable
from deepseek_ops.jobs.training_engine import set_learning_rate
from deepseek_ops.jobs.training_metrics import StepMeter
from deepseek_ops.jobs.training_model import ExpertBalance
from deepseek_ops.jobs.training_task import Split, Task
from deepseek_ops.training.batches import BatchPlan, Indices
from deepseek_ops.training.guardian import ELAPSED
from deepseek_ops.training.positions import position_of
from deepseek_ops.training.schedule import learning_rate, peak_rate

if TYPE_CHECKING:
    import torch
    from deepspeed import DeepSpeedEngine

    from deepseek_ops.jobs.context import JobContext
    from deepseek_ops.jobs.training_checkpoint import Progress
    from deepseek_ops.jobs.training_ranks import Ranks

MAX_EVAL_SAMPLES = 64
"""Samples of the validation split that a validation loss is measured on: always the same, spread over the split."""
EVAL_BATCH_TOKENS = 4096
HISTORY_ROWS = 128
"""Rows of metrics that a checkpoint keeps."""


class Loop:
    """Trains ``engine`` from ``progress.step`` to ``total_steps``."""

    def __init__(
        self,
        plan: TrainingPlan,
        engine: DeepSpeedEngine,
        task: Task,
        balance: ExpertBalance,
        batches: BatchPlan,
        splits: Mapping[str, Split],
        ranks: Ranks,
        *,
        total_steps: int,
        actions: Actions,
        context: JobContext,
        progress: Progress,
    ) -> None:
        self.plan = plan
        self.engine = engine
        self.task = task
        self.balance = balance
        self.meter = StepMeter(plan, engine, balance)
        self.batches = batches
        self.splits = splits
        self.train, self.val = splits["train"], splits.get("val")
        self.loss_before: float | None = None
        """Loss of an incremental training's base on old validation data."""
        self.ranks = ranks
        self.total_steps = total_steps
        self.actions = actions
        self.streams = actions.streams
        self.checkpoints = actions.checkpoints
        self.context = context
        self._go_on(progress)

    def _go_on(self, progress: Progress) -> None:
        """Continue from ``progress``; what its clock showed is where the clock goes on."""
        self.progress = progress
        self._elapsed_before = progress.history[-1].get(ELAPSED, 0.0) if progress.history else 0.0
        self._started = time.perf_counter()

    @property
    def position(self) -> int:
        """Batch position that the next step trains on."""
        return position_of(self.progress.step, self.progress.skipped)

    def run(self) -> Ending | None:
        """Train to the end and return None, or why it ended early; if anybody may go on, checkpointed."""
        while self.progress.step < self.total_steps:
            metrics = self._step(self.progress.step)
            self.progress.step += 1
            asked = metrics.pop("stop_asked") > 0
            if self.val is not None and (self._due(self.plan.eval_steps) or self.progress.step == self.total_steps):
                self.context.progress(self.progress.step, "evaluating")
                metrics |= self._validation(self.val)
                self.context.progress(self.progress.step)
            self._record(metrics)
            reached = self.progress
            going, ending = self.actions.settle(reached, reached.history[-1], asked=asked)
            if ending is not None and ending.asked:  # some machine may not have heard why
                ending.for_good = any_rank(self.ranks, is_pruned(self.context, self.plan))
            if going is not reached:  # rewound: nothing of this step is left to be saved
                self._go_on(going)
            elif reason := self._reason_to_save(ending):
                self.context.progress(self.progress.step, "checkpointing")
                self.actions.save(self.progress, reason=reason)
                self.context.progress(self.progress.step)
            if ending is not None:
                return ending
        return None

    def _validation(self, val: Split) -> dict[str, float]:
        found = {"val_loss": self.validate(val)}
        if self.loss_before is not None:
            found["val_loss_old"] = self.validate(self.splits["val_old"])
            found["forgetting"] = found["val_loss_old"] - self.loss_before
        return found

    def validate(self, split: Split) -> float:
        """Return the mean loss of the validation samples in nats per token; every rank measures a share."""
        import torch

        module = self.engine
        module.eval()
        sums = torch.zeros(2, dtype=torch.float64)
        with torch.no_grad():
            for indices, counted in self._eval_batches(split):
                found = self.task.measure(module, self.task.batch(split, indices), counted)
                sums += torch.tensor([found.loss, found.tokens], dtype=torch.float64)
        module.train()
        total, tokens = (float(value) for value in self.ranks.total(sums))
        return total / max(tokens, 1.0)

    def _reason_to_save(self, ending: Ending | None) -> str:
        """Return why to checkpoint after this step, empty for not at all; never one that may have poisoned weights."""
        step = self.progress.step
        due = self.checkpoints.due(step)  # by every rank, whatever else is decided: ranks may agree in it
        if not saveable(self.progress.history[-1]):
            return ""
        if ending is not None:
            return "" if ending.for_good else "stop"
        if self.plan.purpose == "train" and step == self.total_steps:
            return "end"
        return "interval" if due else ""

    def _due(self, every: int) -> bool:
        return self.progress.step % every == 0

    def _eval_batches(self, split: Split) -> list[tuple[list[int], int]]:
        """Return (indices, how many of them count): as many batches on every rank, or ZeRO-3 waits for ever."""
        count = min(MAX_EVAL_SAMPLES, len(split))
        chosen = [i * len(split) // count for i in range(count)]
        size = max(1, EVAL_BATCH_TOKENS // split.length)
        rounds = math.ceil(count / (size * self.ranks.world_size))
        batches = []
        for turn in range(rounds):
            start = (turn * self.ranks.world_size + self.ranks.rank) * size
            own = chosen[start : start + size]
            batches.append((own or chosen[:1], len(own)))
        return batches

    def _step(self, step: int) -> dict[str, float]:
        """Run one optimiser step and return its metrics, the same on every rank but for the times."""
        import torch

        began = time.perf_counter()
        torch.manual_seed(((self.plan.seed << 40) ^ (step << 12) ^ self.ranks.rank) & ((1 << 63) - 1))
        hyper = self.plan.hyperparameters
        rate = learning_rate(
            step, peak=peak_rate(self.plan), total_steps=self.total_steps, warmup_ratio=hyper.warmup_ratio
        )
        rate *= self.progress.lr_factor
        set_learning_rate(self.engine, rate)
        skipped_before = self.engine.skipped_steps
        own, busy = self._accumulated(self.batches.micro_batches(self.position, self.ranks.rank))
        shared = self._shared(own)
        self.context.progress(step + 1, busy_seconds=busy)
        skipped = self.engine.skipped_steps - skipped_before
        if not skipped and hyper.bias_update_rate:
            self.balance.update(shared[3:])
        measured = self.meter.measure(time.perf_counter() - began, shared[3:])
        finite = not shared[1] and math.isfinite(measured.get("grad_norm", 0.0))
        return {
            "training_loss": float(shared[0]) / self.ranks.world_size,
            "learning_rate": rate,
            "loss_nan_ranks": float(shared[1]),
            "stop_asked": float(shared[2]),
            "skipped": float(skipped),
            "poisoned": float(not finite and not skipped),  # it went into the weights
            **measured,
        }

    def _accumulated(self, micro_batches: Iterable[Indices]) -> tuple[float, float]:
        """Take one optimiser step; return this rank's mean loss and the seconds of its own work in it."""
        import torch

        loss_sum = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        busy = 0.0
        for indices in micro_batches:
            began = time.perf_counter()
            loss = self.task.loss(self.engine, self.task.batch(self.train, indices))
            busy += time.perf_counter() - began
            self.engine.backward(loss)
            self.engine.step()
            loss_sum += loss.detach()
        return float(loss_sum) / self.batches.accumulation_steps, busy

    def _shared(self, loss: float) -> torch.Tensor:
        """Return summed over all ranks: loss, ranks without a finite loss, ranks asked to stop, tokens per expert."""
        import torch

        own = torch.tensor(
            [loss, float(not math.isfinite(loss)), float(self.ranks.stop_requested())], dtype=torch.float64
        )
        return self.ranks.total(torch.cat([own, self.balance.take_counts()]))

    def _record(self, metrics: dict[str, float]) -> None:
        """Add the step's metrics to the progress and to the streams."""
        progress = self.progress
        progress.skipped_steps += int(metrics["skipped"])
        metrics["skipped_steps"] = float(progress.skipped_steps)
        metrics[ELAPSED] = self._elapsed_before + time.perf_counter() - self._started
        progress.training.add(progress.step, metrics["training_loss"])
        if "val_loss" in metrics:
            progress.validation.add(progress.step, metrics["val_loss"])
        progress.history.append({"step": float(progress.step), **metrics})
        del progress.history[:-HISTORY_ROWS]
        self.streams.metric(progress.step, metrics)
        if (detail := self.meter.detail()) is not None:
            self.streams.detail("experts", progress.step, detail)
