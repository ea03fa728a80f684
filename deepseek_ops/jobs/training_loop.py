"""The training loop: one optimiser step after the other, all ranks in step, nothing but arithmetic in the way.

Everything random is a function of (seed, step, rank): batches, learning rate, dropout. What ranks have to agree on
(mean loss, NaN anywhere, expert loads, a request to stop) travels in one all-reduce per step; what rank 0 decides about
it in one broadcast, so that every rank acts in the same step.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from deepseek_ops.core.records import TrainingPlan
from deepseek_ops.jobs.training_engine import set_learning_rate
from deepseek_ops.jobs.training_metrics import StepMeter
from deepseek_ops.jobs.training_model import ExpertBalance
from deepseek_ops.jobs.training_task import Split, Task
from deepseek_ops.training.batches import BatchPlan
from deepseek_ops.training.guardian import ELAPSED, Decision, Guardian
from deepseek_ops.training.schedule import learning_rate, peak_rate

if TYPE_CHECKING:
    import torch
    from deepspeed import DeepSpeedEngine

    from deepseek_ops.jobs.training_checkpoint import Checkpoints, Progress
    from deepseek_ops.jobs.training_streams import Streams

MAX_EVAL_SAMPLES = 64
"""Samples of the validation split that a validation loss is measured on: always the same, spread over the split."""
EVAL_BATCH_TOKENS = 4096
_GO, _STOP_ASKED, _STOP_RULE = 0, 1, 2


@dataclass
class Ranks:
    """What this process needs to know of its peers."""

    rank: int
    world_size: int
    device: str
    stop_requested: Callable[[], bool]

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Return the float64 vector summed over all ranks, on the CPU."""
        import torch.distributed as dist

        sent = values.to(self.device)
        if self.world_size > 1:
            dist.all_reduce(sent)
        return sent.cpu()

    def from_first(self, value: int) -> int:
        """Return rank 0's value on every rank."""
        import torch
        import torch.distributed as dist

        sent = torch.tensor([value], device=self.device)
        if self.world_size > 1:
            dist.broadcast(sent, src=0)
        return int(sent.item())

    def barrier(self) -> None:
        """Wait for all ranks."""
        import torch.distributed as dist

        if self.world_size > 1:
            dist.barrier()


@dataclass
class Ending:
    """Why the loop ended before its last step."""

    asked: bool = False
    decisions: list[Decision] = field(default_factory=list)


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
        guardian: Guardian,
        streams: Streams,
        checkpoints: Checkpoints,
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
        self.guardian = guardian
        self.streams = streams
        self.checkpoints = checkpoints
        self.progress = progress
        self._elapsed_before = progress.history[-1].get(ELAPSED, 0.0) if progress.history else 0.0
        self._started = time.perf_counter()

    def run(self) -> Ending | None:
        """Train to the end and return None, or why it ended early; a healthy state is checkpointed in that case."""
        while self.progress.step < self.total_steps:
            metrics = self._step(self.progress.step)
            self.progress.step += 1
            if self.val is not None and (self._due(self.plan.eval_steps) or self.progress.step == self.total_steps):
                metrics |= self._validation(self.val)
            ending = self._settle(metrics)
            if self._wants_checkpoint(ending):
                self._checkpoint()
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

    def _wants_checkpoint(self, ending: Ending | None) -> bool:
        """Return whether to checkpoint after this step; never after one that may have poisoned the weights."""
        newest = self.progress.history[-1]
        if newest["loss_nan_ranks"] or newest["skipped"]:
            return False
        last = self.plan.purpose == "train" and self.progress.step == self.total_steps
        return ending is not None or last or self.checkpoints.due(self.progress.step)

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
        set_learning_rate(self.engine, rate)
        skipped_before = self.engine.skipped_steps
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.ranks.device)
        for indices in self.batches.micro_batches(step, self.ranks.rank):
            loss = self.task.loss(self.engine, self.task.batch(self.train, indices))
            self.engine.backward(loss)
            self.engine.step()
            loss_sum += loss.detach()
        own = float(loss_sum) / self.batches.accumulation_steps
        shared = self._shared(own)
        skipped = self.engine.skipped_steps - skipped_before
        if not skipped and hyper.bias_update_rate:
            self.balance.update(shared[3:])
        return {
            "training_loss": float(shared[0]) / self.ranks.world_size,
            "learning_rate": rate,
            "loss_nan_ranks": float(shared[1]),
            "stop_asked": float(shared[2]),
            "skipped": float(skipped),
            **self.meter.measure(time.perf_counter() - began, shared[3:]),
        }

    def _shared(self, loss: float) -> torch.Tensor:
        """Return summed over all ranks: loss, ranks without a finite loss, ranks asked to stop, tokens per expert."""
        import torch

        own = torch.tensor(
            [loss, float(not math.isfinite(loss)), float(self.ranks.stop_requested())], dtype=torch.float64
        )
        return self.ranks.total(torch.cat([own, self.balance.take_counts()]))

    def _settle(self, metrics: dict[str, float]) -> Ending | None:
        """Record the step's metrics, let rank 0 decide about them, and return the ending all ranks agree on."""
        progress = self.progress
        asked = metrics.pop("stop_asked") > 0
        progress.skipped_steps += int(metrics["skipped"])
        metrics["skipped_steps"] = float(progress.skipped_steps)
        metrics[ELAPSED] = self._elapsed_before + time.perf_counter() - self._started
        progress.training.add(progress.step, metrics["training_loss"])
        if "val_loss" in metrics:
            progress.validation.add(progress.step, metrics["val_loss"])
        progress.history.append({"step": float(progress.step), **metrics})
        del progress.history[: -self.guardian.memory]
        self.streams.metric(progress.step, metrics)
        decisions = self.guardian.decide(progress.history) if self.ranks.rank == 0 else []
        for decision in decisions:
            self.streams.event("alert", **decision.dump())
        stops = [decision for decision in decisions if decision.action == "stop"]
        verdict = self.ranks.from_first(_STOP_RULE if stops else _STOP_ASKED if asked else _GO)
        return None if verdict == _GO else Ending(asked=verdict == _STOP_ASKED, decisions=stops)

    def _checkpoint(self) -> None:
        began = time.perf_counter()
        folder = self.checkpoints.save(self.engine, self.progress)
        self.streams.event(
            "checkpoint", step=self.progress.step, folder=folder.name, seconds=round(time.perf_counter() - began, 3)
        )
