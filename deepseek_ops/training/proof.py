"""What a training really trained on, computed from what its lives recorded: nothing repeated, nothing left out.

Each life records which batch it consumed in which step, step by step, in runs. The weights at the end are the work of
a chain of lives: each from the checkpoint it began at up to where the next one began. What a life did beyond that was
lost with it and done again; it is no part of the weights and costs device time, so it is counted apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue


@dataclass(slots=True)
class Run:
    """Successive steps on successive batches, of equal size."""

    first_step: int
    last_step: int
    position: int
    """Batch position of the first step: 0 is the first batch of the training."""
    samples: int
    """Samples in each step, over all ranks."""

    def extend(self, step: int, position: int, samples: int) -> bool:
        """Take one more step in and return True, or False when it does not follow."""
        follows = step == self.last_step + 1 and position == self.position + (step - self.first_step)
        if follows and samples == self.samples:
            self.last_step = step
            return True
        return False

    def clipped(self, after: int, upto: int) -> Run | None:
        """Return the steps in (after, upto], or None."""
        first, last = max(self.first_step, after + 1), min(self.last_step, upto)
        if first > last:
            return None
        return Run(first, last, self.position + first - self.first_step, self.samples)

    @property
    def steps(self) -> int:
        return self.last_step - self.first_step + 1


@dataclass(slots=True)
class LifeRecord:
    """What one life did."""

    life: str
    from_step: int
    world_size: int
    runs: list[Run] = field(default_factory=list)
    seconds: float = 0.0
    """How long it trained."""

    def dump(self) -> dict[str, JsonValue]:
        """Return it as JSON."""
        return {
            "life": self.life,
            "from_step": self.from_step,
            "world_size": self.world_size,
            "seconds": self.seconds,
            "runs": [[run.first_step, run.last_step, run.position, run.samples] for run in self.runs],
        }

    @classmethod
    def load(cls, value: JsonValue) -> LifeRecord:
        """Return what ``dump`` wrote. Raises KeyError, TypeError or ValueError for anything else."""
        if not isinstance(value, dict) or not isinstance(value["runs"], list):
            raise TypeError(f"not the record of a life: {value!r}")
        runs = [[int(str(number)) for number in run] for run in value["runs"] if isinstance(run, list)]
        return cls(
            life=str(value["life"]),
            from_step=int(str(value["from_step"])),
            world_size=int(str(value["world_size"])),
            runs=[Run(*run) for run in runs],
            seconds=float(str(value["seconds"])),
        )


@dataclass(frozen=True, slots=True)
class Proof:
    """What the weights have seen."""

    history: tuple[tuple[LifeRecord, tuple[Run, ...]], ...]
    """The lives that the weights come from, oldest first, with the steps of theirs that count."""
    steps: int
    samples: int
    samples_repeated: int
    samples_skipped: int
    """Left out although nobody asked for it."""
    left_out: tuple[tuple[int, int], ...]
    """Ranges (first, end) of batch positions that the guardian left out on purpose."""
    steps_recomputed: int
    steps_unrecorded: int
    """Steps of the history that no record covers: their machine was lost with the record."""

    @property
    def exact(self) -> bool:
        return not (self.samples_repeated or self.samples_skipped or self.steps_unrecorded)

    def dump(self) -> dict[str, JsonValue]:
        """Return the fields of the ``resume_proof`` event."""
        return {
            "exact": self.exact,
            "steps": self.steps,
            "samples": self.samples,
            "samples_repeated": self.samples_repeated,
            "samples_skipped": self.samples_skipped,
            "steps_recomputed": self.steps_recomputed,
            "steps_unrecorded": self.steps_unrecorded,
            "batches_left_out": [[first, end] for first, end in self.left_out],
            "lives": [
                {
                    "life": record.life,
                    "ranks": record.world_size,
                    "steps": [[run.first_step, run.last_step] for run in runs],
                    "samples": [[run.position * run.samples, (run.position + run.steps) * run.samples] for run in runs],
                }
                for record, runs in self.history
            ],
        }


def prove(lives: Sequence[LifeRecord], *, steps: int, left_out: Iterable[tuple[int, int]] = ()) -> Proof:
    """Return what the weights after ``steps`` steps have seen, given all lives in order."""
    history: list[tuple[LifeRecord, tuple[Run, ...]]] = []
    upto = steps
    for record in reversed(lives):
        if record.from_step >= upto:
            continue  # it came to nothing that counts: a later life began before it, or it never made a step
        clipped = (run.clipped(record.from_step, upto) for run in record.runs)
        history.append((record, tuple(run for run in clipped if run is not None)))
        upto = record.from_step
    history.reverse()
    counted = [run for _, runs in history for run in runs]
    recorded = sum(run.steps for run in counted)
    done = sum(run.steps for record in lives for run in record.runs)
    size = max((run.samples for run in counted), default=0)
    purposely = tuple(sorted(left_out))
    repeated, skipped = _against_the_plan(counted, purposely)
    return Proof(
        history=tuple(history),
        steps=steps,
        samples=sum(run.steps * run.samples for run in counted),
        samples_repeated=repeated * size,
        samples_skipped=skipped * size,
        left_out=purposely,
        steps_recomputed=done - recorded,
        steps_unrecorded=steps - recorded,
    )


def _against_the_plan(runs: Sequence[Run], left_out: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """Return how many batches were consumed twice, and how many up to the last one never, nor left out on purpose."""
    spans = sorted((run.position, run.position + run.steps) for run in runs)
    repeated, missing, end = 0, 0, 0
    for first, stop in spans:
        repeated += max(0, min(end, stop) - first)
        if first > end:
            missing += (first - end) - _covered(end, first, left_out)
        end = max(end, stop)
    return repeated, missing


def _covered(first: int, end: int, ranges: Sequence[tuple[int, int]]) -> int:
    covered, at = 0, first
    for start, stop in ranges:
        inside = min(stop, end) - max(start, at)
        if inside > 0:
            covered += inside
            at = min(stop, end)
    return covered
