"""Learning rates and loss curves: pure functions of the step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from deepseek_ops.core.records import TrainingPlan

FLOOR = 0.1
"""Share of the peak that the cosine ends at, as in DeepSeek's own schedules."""
MAX_CURVE_POINTS = 64
REWARM = 0.5
"""Default peak of a training that goes on from a base, as a share of the learning rate.

The base ended its own cosine at a tenth; going back to the full peak unlearns, staying there learns nothing new.
"""


def peak_rate(plan: TrainingPlan) -> float:
    """Return the highest learning rate of the plan's schedule: re-warmed to a share of it where there is a base."""
    return plan.hyperparameters.learning_rate * (1.0 if plan.rewarm is None else plan.rewarm)


def learning_rate(step: int, *, peak: float, total_steps: int, warmup_ratio: float) -> float:
    """Return the learning rate of optimiser step ``step`` (from 0): linear warm-up, then a cosine down to a tenth.

    The last step (``total_steps - 1``) runs at ``0.1 * peak``; steps beyond it stay there.
    """
    warmup = round(total_steps * warmup_ratio)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = min(1.0, (step - warmup) / max(1, total_steps - 1 - warmup))
    return peak * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * progress)))


def thinned(points: Sequence[tuple[int, float]], limit: int = MAX_CURVE_POINTS) -> tuple[tuple[int, float], ...]:
    """Return at most ``limit`` of the points, evenly spread, first and last always among them."""
    if len(points) <= limit:
        return tuple(points)
    return tuple(points[round(i * (len(points) - 1) / (limit - 1))] for i in range(limit))


def total_steps(*, max_steps: int | None, epochs: float | None, num_samples: int, batch_size: int) -> int:
    """Return the number of optimiser steps: ``max_steps`` where given, else ``epochs`` passes, rounded up."""
    if max_steps is not None:
        return max_steps
    return max(1, math.ceil((1.0 if epochs is None else epochs) * num_samples / batch_size))
