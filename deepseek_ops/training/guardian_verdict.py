"""What all ranks do after a step: what rank 0 decided, in a form that one small broadcast carries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from deepseek_ops.core.config.alert_actions import (
    CheckpointAction,
    LowerLearningRateAction,
    RewindAction,
    SkipBatchesAction,
    StopTrainingAction,
)
from deepseek_ops.core.jobs import JobRequest
from deepseek_ops.training.guardian import Decision, widened


class Stop(IntEnum):
    """Whether the training ends here, and because of whom."""

    NO = 0
    ASKED = 1
    RULE = 2


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is done in one step. Numbers only: ranks get it as a vector of ``SIZE`` float64."""

    stop: Stop = Stop.NO
    rewind_before: int | None = None
    """Go back to the newest healthy checkpoint of at most this step."""
    bad_from: int | None = None
    """First step (from 1) whose batch the rewind leaves out; None: all since the checkpoint."""
    skip: int = 0
    """Leave out so many of the batches that come next."""
    factor: float = 1.0
    """Multiply the learning rate."""
    checkpoint: bool = False
    """Save at once."""
    clean: bool = True
    """Nothing speaks against the weights: the step counts towards healthy checkpoints."""

    def encode(self) -> list[float]:
        """Return the verdict as numbers; steps are far below 2^53, so float64 holds them."""
        return [
            float(self.stop),
            -1.0 if self.rewind_before is None else float(self.rewind_before),
            -1.0 if self.bad_from is None else float(self.bad_from),
            float(self.skip),
            self.factor,
            float(self.checkpoint),
            float(self.clean),
        ]

    @classmethod
    def decode(cls, numbers: Sequence[float]) -> Verdict:
        """Return what ``encode`` wrote."""
        stop, before, bad_from, skip, factor, checkpoint, clean = numbers
        return cls(
            stop=Stop(int(stop)),
            rewind_before=None if before < 0 else int(before),
            bad_from=None if bad_from < 0 else int(bad_from),
            skip=int(skip),
            factor=factor,
            checkpoint=bool(checkpoint),
            clean=bool(clean),
        )


SIZE = len(Verdict().encode())


def verdict_of(
    decisions: Sequence[Decision], requests: Sequence[JobRequest], *, step: int, asked: bool, clean: bool
) -> Verdict:
    """Return what is done after ``step`` steps: the decisions of all rules and the requests of people, joined.

    A rule that stops wins over everything, then somebody's request to stop; of several rewinds the one that goes back
    furthest is done; learning rates multiply. A person who rewinds holds what was trained on since for bad: leaving
    nothing out would come to the same place again, because everything random is a function of the step.
    """
    acts = [decision.act for decision in decisions]
    if any(isinstance(act, StopTrainingAction) for act in acts):
        return Verdict(stop=Stop.RULE, clean=clean)
    if asked:
        return Verdict(stop=Stop.ASKED, clean=clean)
    bad = [widened(decision) for decision in decisions if isinstance(decision.act, RewindAction)]
    wished = [request.step for request in requests if request.verb == "rewind"]
    bad += [wish + 1 for wish in wished if wish is not None and wish < step]
    before = [first - 1 for first in bad] + [step for wish in wished if wish is None or wish >= step]
    factor = 1.0
    for act in acts:
        factor *= act.factor if isinstance(act, LowerLearningRateAction) else 1.0
    return Verdict(
        rewind_before=min(before) if before else None,
        bad_from=min(bad) if bad else None,
        skip=max(
            (
                decision.act.count
                for decision in decisions
                if isinstance(decision.act, SkipBatchesAction) and not decision.repeated
            ),
            default=0,  # what a resumed run repeats is left out already
        ),
        factor=factor,
        checkpoint=any(isinstance(act, CheckpointAction) for act in acts)
        or any(request.verb == "checkpoint" for request in requests),
        clean=clean,
    )
