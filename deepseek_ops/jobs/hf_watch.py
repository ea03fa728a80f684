"""Streams and guardian for a training loop that is not ours: told what happens in it, asked what to do.

All ranks call it at the same points of a step, so what they have to agree on travels as in our own loop: the mean loss,
a loss that is not finite on any rank and a request to stop in one all-reduce, rank 0's decisions in one broadcast.

What a foreign loop cannot do: leave batches out, and go back in place. Rules that ask for it take the next step of
their ladder, and the event says so. An update whose loss or gradient is not finite is left out, as DeepSpeed would: it
never reaches the weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pydantic import JsonValue

from deepseek_ops.core.config.alert_actions import LowerLearningRateAction, RewindAction, SkipBatchesAction
from deepseek_ops.jobs.hf_seen import Seen, Verdict
from deepseek_ops.training.guardian import ELAPSED, STOP, Decision, Guardian, Memory
from deepseek_ops.training.guardian_ledger import Entry

if TYPE_CHECKING:
    import torch

    from deepseek_ops.core.jobs import JobRequest
    from deepseek_ops.jobs.agreement import Peers
    from deepseek_ops.jobs.progress import Phase
    from deepseek_ops.jobs.training_ledger import LedgerFile
    from deepseek_ops.jobs.training_model import ExpertBalance
    from deepseek_ops.jobs.training_streams import Streams

_STOP_ASKED, _STOP_RULE, _SAVE, _LOWER = 1, 2, 4, 8
_MILLIONTHS = 1_000_000


class Watch:
    """Follows one training. Every method is called by every rank. ``for_good``: whether a stop is no pause."""

    def __init__(
        self,
        peers: Peers,
        streams: Streams,
        guardian: Guardian,
        *,
        ledger: LedgerFile,
        requests: Callable[[int], list[JobRequest]],
        stop_requested: Callable[[], bool],
        progress: Callable[[int, Phase], None],
        save_every: int | None,
        for_good: Callable[[], bool] = lambda: False,
    ) -> None:
        self.peers = peers
        self.streams = streams
        self.guardian = guardian
        self.seen = Seen()
        self.decisions: list[Decision] = []
        """Those that stopped the training, on rank 0."""
        self.balance: ExpertBalance | None = None
        self.phase: Phase = "away"
        self._save_every = save_every
        self._for_good = for_good
        self._requests = requests
        self._stop_requested = stop_requested
        self._progress = progress
        self._file = ledger
        self._ledger = ledger.ledger
        self._memory = Memory()
        self._started = self._began = time.perf_counter()
        self._loss: torch.Tensor | None = None
        self._tokens = 0
        self._row: dict[str, float] = {}
        self._late: dict[str, float] = {}
        self._shared: list[float] = []

    def dump(self) -> dict[str, JsonValue]:
        """Return what a checkpoint has to remember."""
        return {"seen": self.seen.dump(), "guardian": self._memory.dump()}

    def go_on(self, state: Mapping[str, JsonValue]) -> None:
        """Go on from what ``dump`` returned when the checkpoint was taken."""
        seen, memory = state.get("seen"), state.get("guardian")
        self.seen = Seen.load(seen) if isinstance(seen, dict) else Seen()
        self._memory = Memory.load(memory if isinstance(memory, dict) else {})

    def finish(self) -> None:
        """Wait until what the guardian did is in the store."""
        self._file.finish()

    def at(self, phase: Phase) -> None:
        """Say what comes now: a rank that is silent for much too long is taken for hung."""
        self.phase = phase
        self._progress(self.seen.step, phase)

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Be at something else in this block, then at what it was before."""
        before = self.phase
        self.at(phase)
        try:
            yield
        finally:
            self.at(before)

    def begin_step(self) -> None:
        """Note that a step begins, and tell the streams about the one before."""
        self.flush()
        self.at("scripted")
        self._began = time.perf_counter()

    def micro_batch(self, loss: torch.Tensor, tokens: int) -> None:
        """Take what a micro-batch came to: its share of the step's loss, and its tokens on this rank."""
        loss = loss.detach()
        self._loss = loss if self._loss is None else self._loss + loss
        self._tokens += tokens

    def agree(self, gradient: float | None) -> bool:
        """Return whether the update may be made, given the norm of the gradient where it is known."""
        import torch

        own = math.nan if self._loss is None else float(self._loss)
        finite = math.isfinite(own)
        facts = [own if finite else 0.0, float(not finite), float(self._stop_requested()), float(self._tokens)]
        counts = torch.zeros(0, dtype=torch.float64) if self.balance is None else self.balance.take_counts()
        shared = self.peers.total(torch.cat([torch.tensor(facts, dtype=torch.float64), counts]))
        loss, bad, asked, tokens = (float(value) for value in shared[:4])
        good = not bad and (gradient is None or math.isfinite(gradient))
        self._shared = [asked, tokens]
        self._row = {
            "training_loss": math.nan if bad else loss / self.peers.world_size,
            "loss_nan_ranks": bad,
            "skipped": float(not good),
            **({} if gradient is None else {"grad_norm": gradient}),
            **self._experts(shared[4:], good=good),
        }
        self._loss, self._tokens = None, 0
        return good

    def end_step(self, step: int, rate: float) -> Verdict:
        """Take a finished step and return what all ranks do now."""
        asked, tokens = self._shared
        seen, now = self.seen, time.perf_counter()
        seconds = max(now - self._began, 1e-9)
        seen.step, seen.tokens, seen.skipped = step, seen.tokens + int(tokens), seen.skipped + int(self._row["skipped"])
        self._row |= {
            "learning_rate": rate,
            "skipped_steps": float(seen.skipped),
            "tokens_per_second": tokens / seconds,
            "step_seconds": seconds,
            ELAPSED: now - self._started,
        }
        seen.training.add(step, self._row["training_loss"])
        seen.rates = [*seen.rates[-1023:], tokens / seconds]
        seen.last = {**seen.last, **self._row}
        code, factor = self._judged(step, asked=asked > 0) if self.peers.rank == 0 else (0, 1.0)
        code = self.peers.from_first(code)
        if code & _LOWER:
            factor = self.peers.from_first(round(factor * _MILLIONTHS)) / _MILLIONTHS
        return Verdict(bool(code & _STOP_ASKED), bool(code & _STOP_RULE), bool(code & _SAVE), factor)

    def told(self, metrics: Mapping[str, float]) -> None:
        """Add what the loop itself reports about the step that has just ended, such as an evaluation."""
        if not metrics:
            return
        self._late |= metrics
        self.seen.last |= metrics
        if self._row:
            self._row |= {name: value for name, value in metrics.items() if name not in self._row}
        else:
            self.streams.event("evaluation", step=self.seen.step, **metrics)
        if "val_loss" in metrics:
            self.seen.validation.add(self.seen.step, metrics["val_loss"])

    def flush(self) -> None:
        """Write the last step to the streams."""
        if self._row:
            self.streams.metric(self.seen.step, self._row)
            self._row = {}

    def settle(self) -> None:
        """Bring to the store what was told so far. Raises what the store raises."""
        self.streams.settle()
        self._file.settle()

    def _experts(self, counts: torch.Tensor, *, good: bool) -> dict[str, float]:
        if self.balance is None:
            return {}
        if good and self.balance.rate:
            self.balance.update(counts)
        return self.balance.load(counts)

    def _judged(self, step: int, *, asked: bool) -> tuple[int, float]:
        """Return rank 0's decision as bits, and what the learning rate is multiplied by."""
        row = {"step": float(step), **self._late, **self._row}
        self._late = {}
        self._memory, decisions = self.guardian.judge(self._memory, row, self._ledger)
        taken = [self._possible(decision) for decision in decisions]
        self.decisions = [decision for decision in taken if decision.act is not None and decision.act.type == STOP]
        factor = 1.0
        for decision in taken:
            factor *= decision.act.factor if isinstance(decision.act, LowerLearningRateAction) else 1.0
            self._record(decision)
        save = any(decision.action == "checkpoint" for decision in taken) or self._obeyed(step)
        save = (
            save or (asked and not self._for_good()) or (self._save_every is not None and step % self._save_every == 0)
        )
        stop = _STOP_RULE if self.decisions else _STOP_ASKED if asked else 0
        return stop | (_SAVE if save else 0) | (_LOWER if factor < 1.0 else 0), factor

    def _possible(self, decision: Decision) -> Decision:
        """Return the decision with the first rung that a foreign loop can take."""
        barred: set[tuple[str, int]] = set()
        while isinstance(decision.act, RewindAction | SkipBatchesAction):
            self.streams.event("action_not_possible", step=decision.step, rule=decision.rule, action=decision.action)
            barred.add((decision.rule, decision.rung))
            decision = self.guardian.without(barred, decision, self._ledger)
        return decision

    def _record(self, decision: Decision) -> None:
        self.streams.event("alert", **decision.dump())
        if decision.act is None or decision.repeated:
            return
        factor = decision.act.factor if isinstance(decision.act, LowerLearningRateAction) else 1.0
        self._add(
            Entry(
                number=self._ledger.next_number,
                step=decision.step,
                rule=decision.rule,
                action=decision.act.type,
                rung=decision.rung,
                attempt=decision.attempt,
                factor=factor,
                job_attempt=self._ledger.job_attempt,
            )
        )

    def _obeyed(self, step: int) -> bool:
        """Return whether a person asked for a checkpoint; what cannot be done is said."""
        save = False
        for request in self._requests(self._ledger.obeyed):
            save = save or request.verb == "checkpoint"
            kind = "request" if request.verb == "checkpoint" else "request_not_possible"
            self.streams.event(kind, step=step, verb=request.verb, by=request.by, number=request.number)
            number, attempt = self._ledger.next_number, self._ledger.job_attempt
            self._add(Entry(number, step, "", request.verb, request=request.number, job_attempt=attempt))
        return save

    def _add(self, entry: Entry) -> None:
        self._file.add([entry])
