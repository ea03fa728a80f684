"""Alert rules over the metrics of a training: what they decide is a pure function of the metric history.

A rule fires once when its condition has held for as long as it asks, and again only after it has been false in
between. So a restart, which repeats the history since its checkpoint, comes to the same decisions at the same steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from deepseek_ops.core.config.alerts import Alert

ELAPSED = "elapsed_seconds"
"""Metric that rules with a duration measure by: seconds of training since its start, pauses left out."""
DEFAULT_ALERTS: tuple[Mapping[str, JsonValue], ...] = (
    {"metric": "loss_nan_ranks", "condition": "value > 0", "actions": [{"type": "page"}]},
    {"metric": "loss_nan_ranks", "condition": "value > 0", "for": "3 steps", "actions": [{"type": "stop_training"}]},
    {"metric": "skipped", "condition": "value > 0", "for": "3 steps", "actions": [{"type": "stop_training"}]},
)
"""Always watched: a loss that is not finite on any rank (rank 0 alone would miss it), and optimiser steps that are
skipped again and again, which train nothing and cost as much as any other. ZeRO-0 skips none: there the loss tells."""

Row = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Decision:
    """One rule that fired at one step."""

    step: int
    rule: str
    metric: str
    action: Literal["stop", "record"]
    actions: tuple[Mapping[str, JsonValue], ...]
    evidence: tuple[float, ...]
    """The newest values of the metric, oldest first."""

    @property
    def reason(self) -> str:
        """One sentence for people."""
        values = ", ".join(f"{value:g}" for value in self.evidence)
        return f"{self.metric}: {self.rule} (last values: {values})"

    def dump(self) -> dict[str, JsonValue]:
        """Return the fields of the ``alert`` event."""
        return {
            "step": self.step,
            "rule": self.rule,
            "metric": self.metric,
            "action": self.action,
            "actions": [dict(action) for action in self.actions],
            "evidence": [repr(value) for value in self.evidence],
            "reason": self.reason,
        }


class Guardian:
    """The rules of one run: the pipeline file's and, unless it watches the same metric itself, our defaults."""

    def __init__(self, alerts: Sequence[Mapping[str, object]]) -> None:
        own = [Alert.model_validate(dict(alert)) for alert in alerts]
        watched = {alert.metric for alert in own}
        defaults = [Alert.model_validate(dict(alert)) for alert in DEFAULT_ALERTS]
        self.rules = (*own, *(alert for alert in defaults if alert.metric not in watched))
        spans = [rule.parsed.window + (rule.hold.steps or 0) + 1 for rule in self.rules]
        timed = any(not rule.hold.steps for rule in self.rules)
        self.memory = max([*spans, 1024 if timed else 1])
        """Rows of history that decisions look at: what a checkpoint has to keep."""

    def decide(self, history: Sequence[Row]) -> list[Decision]:
        """Return the rules that fire at the newest row. Rows are the metrics of successive steps, oldest first."""
        return [decision for rule in self.rules if (decision := _decide(rule, history)) is not None]


def _decide(rule: Alert, history: Sequence[Row]) -> Decision | None:
    if not history or rule.metric not in history[-1]:
        return None  # not measured in this step: nothing new to say
    rows = [row for row in history if rule.metric in row]
    values = [row[rule.metric] for row in rows]
    if not _held(rule, rows, values) or _held(rule, rows[:-1], values[:-1]):
        return None
    actions = tuple(action.model_dump(mode="json") for action in rule.actions)
    stops = any(action.type == "stop_training" for action in rule.actions)
    return Decision(
        step=int(history[-1].get("step", 0)),
        rule=f"{rule.condition} for {rule.hold}",
        metric=rule.metric,
        action="stop" if stops else "record",
        actions=actions,
        evidence=tuple(values[-max(3, rule.hold.steps or 0) :][-10:]),
    )


def _held(rule: Alert, rows: Sequence[Row], values: Sequence[float]) -> bool:
    """Return whether the condition has held as long as the rule asks, up to the newest row."""
    if not values or not rule.fires(values):
        return False
    seconds = rule.hold.time.total_seconds()
    if not seconds:
        return True
    now = rows[-1].get(ELAPSED, 0.0)
    for end in range(len(values), 0, -1):
        if not rule.fires(values[:end]):
            return False
        if now - rows[end - 1].get(ELAPSED, 0.0) >= seconds:
            return True
    return False
