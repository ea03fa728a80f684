"""When the next checkpoint is due: after a fixed number of steps, or as measurement says."""

from __future__ import annotations

import time
from collections import deque
from statistics import median
from typing import TYPE_CHECKING, Literal, Self

from deepseek_ops.training.intervals import NO_HISTORY, PAYLOAD_KEY, History, Interval, automatic

if TYPE_CHECKING:
    from deepseek_ops.core.records import TrainingPlan
    from deepseek_ops.jobs.context import JobContext

PROBE_STEPS = 10
"""Steps before the first checkpoint of an automatic interval: it is taken to measure what one costs."""
_SEEN = 64


class Pace:
    """The clock of the steps and of what checkpoints cost.

    ``history`` is what other trainings met on such machines; ``earlier`` how often this one is known to have been
    started before, attempts and restarts together: a machine that is lost takes its record of that along.
    """

    def __init__(
        self, every: int | Literal["auto"], nodes: int, *, history: History = NO_HISTORY, earlier: int = 0
    ) -> None:
        self._every = every
        self._nodes = nodes
        self._history = history
        self._earlier = earlier
        self._steps: deque[float] = deque(maxlen=_SEEN)
        self._tick: float | None = None
        self._next = 0
        self._planned = 0
        self.cost = 0.0
        """Seconds that checkpoints have kept this rank from training, the median of the last ones."""
        self.busy = 0.0
        """Seconds until the last checkpoint was written and sent."""
        self.trained_seconds = 0.0
        self._costs: deque[float] = deque(maxlen=8)

    @classmethod
    def of(cls, context: JobContext, plan: TrainingPlan, nodes: int) -> Self:
        """Return the pace of a training on ``nodes`` machines, with what its job was told and has met."""
        history = History.load(context.payload.get(PAYLOAD_KEY))
        return cls(plan.checkpoint_steps, nodes, history=history, earlier=context.attempt - 1 + context.restarts)

    @property
    def automatic(self) -> bool:
        return self._every == "auto"

    def begin(self, step: int) -> None:
        """Start at a step."""
        self._tick, self._next, self.trained_seconds = time.perf_counter(), step + PROBE_STEPS, 0.0
        self._steps.clear()

    def step(self) -> None:
        """Note that a step is over."""
        now = time.perf_counter()
        if self._tick is not None:
            self._steps.append(now - self._tick)
            self.trained_seconds += now - self._tick
        self._tick = now

    def due(self, step: int) -> bool:
        """Return whether a checkpoint is due after this step: on all ranks alike."""
        return step >= self._next if self._every == "auto" else step % self._every == 0

    def saved(self, step: int, seconds: float) -> None:
        """Note what a checkpoint has cost; the time is no step's."""
        self._costs.append(seconds)
        self.cost = median(self._costs)
        self.trained_seconds += seconds
        self._tick = time.perf_counter()
        self._next = step + max(PROBE_STEPS, self._planned)

    def planned(self, *, interruptions: int, before_seconds: float) -> Interval:
        """Return the interval that this rank's measurements ask for; earlier lives trained ``before_seconds``."""
        return automatic(
            cost=self.cost,
            step_seconds=median(self._steps) if self._steps else 1.0,
            interruptions=max(interruptions, self._earlier),
            trained_seconds=before_seconds + self.trained_seconds,
            busy=self.busy,
            nodes=self._nodes,
            history=self._history,
        )

    def next_after(self, step: int, steps: int) -> None:
        """Have the next checkpoint taken so many steps after this one."""
        self._next = step + steps

    def is_news(self, steps: int) -> bool:
        """Return whether the interval differs from the one told last by more than a fifth."""
        news = abs(steps - self._planned) > self._planned / 5
        if news:
            self._planned = steps
        return news
