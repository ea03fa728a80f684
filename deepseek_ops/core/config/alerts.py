"""Rules over training metrics and what they do when they hold.

**The ladder.** The acting actions of a rule (``checkpoint``, ``skip_batches``, ``lower_lr``, ``rewind``,
``stop_training``) are a ladder in the order of the file. Each time the rule fires, exactly one of them is taken: the
first that has attempts left. With the defaults, ``[skip_batches, rewind, stop_training]`` skips once, rewinds three
times and then stops. An action that cannot be done (nothing healthy to rewind to) counts as used up, and the next one
is taken in the same step. A ladder without ``stop_training`` that is used up only tells people. The notifications of
the rule (``email``, ``page``, ``slack``, ``http``) go out at every firing, whatever the ladder does.

**When a rule fires.** When its condition has held for ``for``, without a break. While it goes on holding, a rule whose
ladder has an action left fires again each time the condition has held for another ``for`` since it fired last; one
that only tells people fires again after the condition has been false, or after its ``cooldown``. Within ``cooldown``
of a firing, no rule fires again.

**Attempts** are counted over the whole run: rewinds, restarts and resumes do not give them back; resubmitting a run
that a rule has stopped does. ``max_attempts`` of a rule bounds its actions together, ``stop_training`` aside.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from deepseek_ops.core.conditions import Condition
from deepseek_ops.core.config.alert_actions import (
    ACTS,
    NOTIFICATIONS,
    Act,
    Action,
    CheckpointAction,
    EmailAction,
    HttpAction,
    LowerLearningRateAction,
    Notification,
    PageAction,
    Recipient,
    RewindAction,
    SkipBatchesAction,
    SlackAction,
    StopTrainingAction,
)
from deepseek_ops.core.config.base import Config, Number, Problem, Problems, Steps, Word, warn
from deepseek_ops.core.quantities import Span

__all__ = [
    "LOSS_THRESHOLD",
    "Action",
    "Alert",
    "CheckpointAction",
    "EmailAction",
    "HttpAction",
    "LowerLearningRateAction",
    "PageAction",
    "Recipient",
    "RewindAction",
    "SkipBatchesAction",
    "SlackAction",
    "StopTrainingAction",
]

LOSS_THRESHOLD = 20.0
"""Nats per token. Guessing uniformly over the largest DeepSeek vocabulary costs ln(129280) = 11.8: above 20, any model
of the family has diverged. Used for loss metrics whose alert names ``threshold`` and declares none."""
_LOSSES = ("training_loss", "val_loss", "loss")
_SPEEDS = ("tokens_per_second", "step_seconds")
"""Metrics that no batch, learning rate or older state can be the cause of."""

Severity = Literal["info", "warning", "critical"]


@lru_cache(maxsize=256)
def _parsed(condition: str) -> Condition:
    return Condition.parse(condition)


@lru_cache(maxsize=256)
def _window(condition: str) -> int:
    return _parsed(condition).window


class Alert(Config):
    """One rule: a metric, a condition over its points, and what to do when it held long enough."""

    metric: Word = Field(description="Name of a metric of the run, such as training_loss.")
    condition: str = Field(description="Such as 'value > threshold or is_nan()'; see the condition language.")
    threshold: Number | None = Field(default=None, description="What the condition calls threshold, metric units.")
    hold: Steps = Field(
        default=Span(steps=1), alias="for", description="How long the condition must hold: '3 steps' or '30s'."
    )
    cooldown: Steps | None = Field(
        default=None, description="How long the rule is silent after it fired: '50 steps' or '10m'."
    )
    max_attempts: int | None = Field(
        default=None, ge=1, le=1000, description="How often the rule acts in one run, stop_training aside."
    )
    severity: Severity = Field(default="warning", description="For the people who are told.")
    actions: tuple[Action, ...] = Field(
        min_length=1, description="Notifications always go out; of the others the first with attempts left is taken."
    )

    @field_validator("condition")
    @classmethod
    def _parses(cls, value: str) -> str:
        Condition.parse(value)
        return value

    @model_validator(mode="after")
    def _threshold_is_known(self, info: ValidationInfo) -> Alert:
        if self.threshold is not None or not self.parsed.uses_threshold:
            return self
        if self.metric not in _LOSSES:
            found = Problem(
                ("condition",),
                f"the condition {self.condition!r} uses threshold, but none is declared.",
                "Add a line such as 'threshold: 20' to this alert.",
                needs=(("threshold",),),
            )
            raise Problems((found,))
        warn(info, f"alert on {self.metric}: no threshold is declared; {LOSS_THRESHOLD:g} nats per token is used")
        return self

    @model_validator(mode="after")
    def _ladder_is_climbable(self) -> Alert:
        problems = [*self._unreachable(), *self._pointless()]
        if problems:
            raise Problems(tuple(problems))
        return self

    def _unreachable(self) -> list[Problem]:
        at = next((n for n, action in enumerate(self.actions) if isinstance(action, StopTrainingAction)), None)
        after = [] if at is None else [n for n in range(at + 1, len(self.actions)) if isinstance(self.actions[n], ACTS)]
        problems = [
            Problem(
                ("actions", n),
                f"{self.actions[n].type} stands after stop_training and is never reached.",
                "Write stop_training as the last action.",
            )
            for n in after
        ]
        if self.max_attempts is not None and not any(not isinstance(act, StopTrainingAction) for act in self.ladder):
            text = f"max_attempts={self.max_attempts} bounds actions, but this rule has none that it could bound."
            remedy = "Remove it, or add checkpoint, skip_batches, lower_lr or rewind to the actions."
            problems.append(Problem(("max_attempts",), text, remedy, needs=(("actions",),)))
        return problems

    def _pointless(self) -> list[Problem]:
        if self.metric not in _SPEEDS:
            return []
        return [
            Problem(
                ("actions", n),
                f"{action.type} cannot help {self.metric}: no batch and no weight makes a step slow.",
                "Use page, slack, http, email, checkpoint or stop_training.",
            )
            for n, action in enumerate(self.actions)
            if isinstance(action, SkipBatchesAction | LowerLearningRateAction | RewindAction)
        ]

    @property
    def ladder(self) -> tuple[Act, ...]:
        """The actions that change the training, in the order in which they are taken."""
        return tuple(action for action in self.actions if isinstance(action, ACTS))

    @property
    def notifications(self) -> tuple[Notification, ...]:
        """Who is told at every firing."""
        return tuple(action for action in self.actions if isinstance(action, NOTIFICATIONS))

    @property
    def title(self) -> str:
        """What the rule says, on one line; names the rule in events."""
        lasting = "" if self.hold.steps == 1 else f" for {self.hold}"
        return f"{self.metric}: {self.condition}{lasting}"

    @property
    def parsed(self) -> Condition:
        return _parsed(self.condition)

    @property
    def effective_threshold(self) -> float | None:
        """What ``threshold`` stands for: the declared one, or the built-in one of a loss."""
        return LOSS_THRESHOLD if self.threshold is None and self.metric in _LOSSES else self.threshold

    def holds(self, points: Sequence[float]) -> bool:
        """Return whether the condition holds at the newest of ``points``, oldest first."""
        return self.parsed.holds(points[-_window(self.condition) :], threshold=self.effective_threshold)

    def fires(self, history: Sequence[float]) -> bool:
        """Return whether the condition holds at each of the last ``for`` steps of ``history``, oldest point first.

        A rule with a time instead of steps is asked at the newest point only: the caller keeps the clock.
        """
        steps = self.hold.steps or 1
        ends = range(len(history) - steps + 1, len(history) + 1)
        return len(history) >= steps and all(self.holds(history[:end]) for end in ends)
