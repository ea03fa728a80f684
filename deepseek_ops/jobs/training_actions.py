"""What is done after a step: rules are judged and people's requests read by rank 0, and all ranks act at once.

One broadcast carries the verdict. Only where a rewind finds nothing to go back to is there a second one, with the next
rung of the ladder. An action is written into the ledger when it has been carried out and before the next step begins:
killed in between, the run comes to the same decision again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_ops.core.config.alert_actions import CheckpointAction, RewindAction
from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.jobs import JobRequest
from deepseek_ops.jobs.training_notes import Done, Notes
from deepseek_ops.training.guardian import Decision, Guardian, Memory, Rung
from deepseek_ops.training.guardian_ledger import REWIND
from deepseek_ops.training.guardian_verdict import Stop, Verdict, verdict_of
from deepseek_ops.training.positions import next_positions, position_of, united

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

    from deepseek_ops.jobs.training_checkpoint import Checkpoints, Progress
    from deepseek_ops.jobs.training_ledger import LedgerFile
    from deepseek_ops.jobs.training_ranks import Ranks
    from deepseek_ops.jobs.training_streams import Streams

Range = tuple[int, int]


@dataclass(eq=False)
class AbandonedStateError(PermanentError):
    """Only states of a way that the run has given up can be resumed."""

    step: int
    went_to: int

    def __str__(self) -> str:
        return (
            f"the newest checkpoint, of step {self.step}, lies behind step {self.went_to}, to which the guardian went "
            "back because of what came after it, and that older checkpoint is gone; train the plan anew."
        )


@dataclass
class Ending:
    """Why the loop ended before its last step."""

    asked: bool = False
    for_good: bool = False
    """Whether nobody goes on from here, so that nothing need be kept."""
    decisions: list[Decision] = field(default_factory=list)


@dataclass
class _Judged:
    """What rank 0 has made of a step; empty on the other ranks."""

    decisions: list[Decision] = field(default_factory=list)
    requests: list[JobRequest] = field(default_factory=list)
    clean: bool = True
    barred: set[Rung] = field(default_factory=set)


@dataclass
class Actions:
    """Decides and acts after each step; every method is called by every rank in the same step."""

    guardian: Guardian
    ledger: LedgerFile
    checkpoints: Checkpoints
    engine: DeepSpeedEngine
    streams: Streams
    ranks: Ranks
    requests: Callable[[int], list[JobRequest]]
    """People's requests after a number; asked on rank 0."""
    samples: int
    """Samples of one batch."""
    memory: Memory = field(default_factory=Memory)

    def __post_init__(self) -> None:
        self._notes = Notes(self.ledger, self.streams, self.samples)

    def resume(self) -> Progress | None:
        """Restore the newest state that the run has not given up, with what the ledger says of its way; None: begin.

        Raises AbandonedStateError when all that is left lies behind a step that the run went back to.
        """
        progress = self.checkpoints.load(self.engine)
        ledger = self.ledger.ledger
        rewinds, went_to = self.ranks.numbers_from_first([float(ledger.rewinds), float(ledger.last_rewind_to or 0)])
        if progress is not None and progress.rewinds < rewinds and progress.step > went_to:
            given_up = progress.step
            progress = self.checkpoints.rewind(self.engine, before=int(went_to))
            if progress is None:
                raise AbandonedStateError(given_up, int(went_to))
        return self._with_ledger(progress, int(rewinds))

    def settle(self, progress: Progress, row: Mapping[str, float], *, asked: bool) -> tuple[Progress, Ending | None]:
        """Judge the step that ended with ``row`` and do what follows from it.

        Returns the progress to go on from, another one after a rewind, and the ending if there is one.
        """
        judged = self._judged(row, progress.step) if self.ranks.rank == 0 else _Judged()
        verdict = self._shared(judged, progress.step, asked=asked)
        position = position_of(progress.step - 1, progress.skipped)
        self.checkpoints.observe(progress.step, verdict.clean, position=position, samples=self.samples)
        restored: Progress | None = None
        while verdict.rewind_before is not None:
            restored = self.checkpoints.rewind(self.engine, before=verdict.rewind_before)
            if restored is not None:
                break
            verdict = self._passed_over(judged, verdict, progress.step, asked=asked)
        if verdict.stop is not Stop.NO:
            self._notes.done(Done(progress.step, progress.lr_factor), judged.decisions, judged.requests)
            return progress, Ending(asked=verdict.stop is Stop.ASKED, decisions=_stopping(judged.decisions))
        return self._applied(judged, verdict, progress, restored), None

    def save(self, progress: Progress, *, reason: str) -> Path:
        """Save a checkpoint of the progress and of what the rules remember."""
        began = time.perf_counter()
        if self.ranks.rank == 0:
            progress.guardian = self.memory.dump()
        folder = self.checkpoints.save(self.engine, progress, reason=reason)
        seconds = round(time.perf_counter() - began, 3)
        self.streams.event("checkpoint", step=progress.step, folder=folder.name, reason=reason, seconds=seconds)
        self.ledger.send()
        return folder

    def _judged(self, row: Mapping[str, float], step: int) -> _Judged:
        ledger = self.ledger.ledger
        self.memory, decisions = self.guardian.judge(self.memory, row, ledger)
        judged = _Judged(decisions, clean=self.guardian.is_clean(self.memory, row, ledger))
        finite = saveable(row)
        if not finite:
            judged.decisions = self._without(judged, CheckpointAction)
        for request in self.requests(ledger.obeyed):
            if request.verb == "checkpoint" and not finite:
                break  # it waits for a state that is worth keeping, and what was asked after it waits too
            if request.step is not None and request.step > step:
                why = f"step {request.step} is still to come: the training is at step {step}"
                self._notes.refused(step, why, [], [request])
                continue
            judged.requests.append(request)
        self._notes.fired(judged.decisions)
        return judged

    def _shared(self, judged: _Judged, step: int, *, asked: bool) -> Verdict:
        own = verdict_of(judged.decisions, judged.requests, step=step, asked=asked, clean=judged.clean)
        return Verdict.decode(self.ranks.numbers_from_first(own.encode()))

    def _passed_over(self, judged: _Judged, verdict: Verdict, step: int, *, asked: bool) -> Verdict:
        """Return the verdict without the rewind that found no healthy checkpoint."""
        why = f"no healthy checkpoint of step {verdict.rewind_before} or before"
        before = judged.decisions
        refused = [request for request in judged.requests if request.verb == REWIND]
        self._notes.refused(step, why, [one for one in before if one.action == REWIND], refused)
        judged.requests = [request for request in judged.requests if request.verb != REWIND]
        judged.decisions = self._without(judged, RewindAction)
        self._notes.fired([decision for decision in judged.decisions if decision not in before])
        return self._shared(judged, step, asked=asked)

    def _without(self, judged: _Judged, kind: type[CheckpointAction] | type[RewindAction]) -> list[Decision]:
        """Return the decisions with the next rung of the ladder where one of this kind cannot be done."""
        decided = []
        for decision in judged.decisions:
            now = decision
            while isinstance(now.act, kind):
                judged.barred.add((now.rule, now.rung))
                now = self.guardian.without(judged.barred, now, self.ledger.ledger)
            decided.append(now)
        return decided

    def _applied(self, judged: _Judged, verdict: Verdict, progress: Progress, restored: Progress | None) -> Progress:
        """Return the progress after skips, rates and rewinds, the same on every rank, and note what was done."""
        position = position_of(progress.step - 1, progress.skipped)
        bad: list[Range] = []
        going = progress
        if restored is not None:
            first = restored.step + 1 if verdict.bad_from is None else verdict.bad_from
            if first <= progress.step:
                bad = [(position_of(first - 1, progress.skipped), position + 1)]
            going = replace(restored, rewinds=progress.rewinds + 1)
            self.memory = Memory.load(restored.guardian)
        left_out = united([*progress.skipped, *bad])
        ahead = next_positions(position, verdict.skip, left_out)
        going.skipped = united([*left_out, *ahead])
        going.lr_factor = progress.lr_factor * verdict.factor
        went_to = None if restored is None else restored.step
        done = Done(progress.step, going.lr_factor, went_to=went_to, bad=bad, ahead=ahead)
        self._notes.done(done, judged.decisions, judged.requests)
        if verdict.checkpoint and restored is None:
            self.save(going, reason="request" if judged.requests else "rule")
        return going

    def _with_ledger(self, progress: Progress | None, rewinds: int) -> Progress | None:
        """Return the progress with what the ledger knows of the way to it; equal on every rank."""
        ledger = self.ledger.ledger
        step = 0 if progress is None else progress.step
        ranges = ledger.skipped()
        count, factor = self.ranks.numbers_from_first([float(len(ranges)), ledger.factor_at(step)])
        flat = [float(bound) for pair in ranges for bound in pair] or [0.0] * (2 * int(count))
        flat = self.ranks.numbers_from_first(flat) if count else []
        known = [(int(flat[at]), int(flat[at + 1])) for at in range(0, len(flat), 2)]
        if progress is None:
            if not known and factor == 1.0 and not rewinds:
                return None
            from deepseek_ops.jobs.training_checkpoint import Progress

            progress = Progress()
        progress.skipped = united([*progress.skipped, *known])
        progress.lr_factor = factor if rewinds or factor != 1.0 else progress.lr_factor
        progress.rewinds = rewinds
        self.memory = Memory.load(progress.guardian)
        return progress


def saveable(row: Mapping[str, float]) -> bool:
    """Return whether the state after this step may be saved: its loss was finite on all ranks and it was not skipped.

    A step whose condition a rule is only beginning to look at may be saved; it does not become healthy by that.
    """
    return not (row.get("loss_nan_ranks") or row.get("skipped") or row.get("poisoned"))


def _stopping(decisions: Sequence[Decision]) -> list[Decision]:
    return [decision for decision in decisions if decision.action == "stop"]
