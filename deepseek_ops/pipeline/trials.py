"""What a trial's job has shown so far, and what it came to."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from pydantic import JsonValue

from deepseek_ops.core.records import Checkpoint


def trial_curve(events: Iterable[Mapping[str, JsonValue]], *, metric: str) -> tuple[tuple[int, float], ...]:
    """Return (step, value) of the metric from a job's events, in step order; a repeated step counts once, the last."""
    found: dict[int, float] = {}
    for event in events:
        value = event.get(metric)
        step = event.get("step")
        if event.get("kind") == "metric" and isinstance(step, int) and isinstance(value, int | float):
            found[step] = float(value)
    return tuple(sorted(found.items()))


def objective(checkpoint: Checkpoint, *, metric: str) -> float | None:
    """Return the trial's final value of the metric; None when it was not measured or is not finite."""
    value = checkpoint.metrics.get(metric)
    return value if value is not None and math.isfinite(value) else None


def measured(events: Iterable[Mapping[str, JsonValue]], checkpoint: Checkpoint, *, metric: str) -> bool:
    """Return whether the training measured the metric at all, finite or not; true where its steps are not known."""
    rows = [event for event in events if event.get("kind") == "metric"]
    return not rows or metric in checkpoint.metrics or any(metric in row for row in rows)


def diverged(events: Iterable[Mapping[str, JsonValue]]) -> bool:
    """Return whether the training ended because of its values: an alert rule stopped it, or its loss is not finite.

    That is an answer about the values; a trial that ended for another reason says nothing about them.
    """
    return any(
        (event.get("kind") == "alert" and event.get("action") == "stop")
        or (event.get("kind") == "failed" and event.get("error") == "DivergedError")
        for event in events
    )
