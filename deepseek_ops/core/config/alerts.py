"""Rules over training metrics and what they do when they hold."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from deepseek_ops.core.conditions import Condition
from deepseek_ops.core.config.base import Config, Matches, Number, Problem, Problems, Steps, Word, warn
from deepseek_ops.core.quantities import Span

LOSS_THRESHOLD = 20.0
"""Nats per token. Guessing uniformly over the largest DeepSeek vocabulary costs ln(129280) = 11.8: above 20, any model
of the family has diverged. Used for loss metrics whose alert names ``threshold`` and declares none."""
_LOSSES = ("training_loss", "val_loss", "loss")

Recipient = Annotated[str, Matches(r"^[^@\s,;<>]+@[^@\s,;<>]+$", "a mail address such as team@example.com")]


class EmailAction(Config):
    """Mail to people, through Airflow's SMTP connection."""

    type: Literal["email"]
    recipients: tuple[Recipient, ...] = Field(min_length=1, description="Mail addresses.")


class PageAction(Config):
    """Wake somebody: through the notifier behind an Airflow connection."""

    type: Literal["page"]
    connection: str = Field(default="", description="Airflow connection id; empty = the project's routing.")


class StopTrainingAction(Config):
    """End the training after a last checkpoint."""

    type: Literal["stop_training"]


class SkipBatchesAction(Config):
    """Leave out the batches that come next."""

    type: Literal["skip_batches"]
    count: int = Field(default=1, ge=1, le=10_000, description="Optimiser steps to skip.")


class LowerLearningRateAction(Config):
    """Multiply the learning rate."""

    type: Literal["lower_lr"]
    factor: float = Field(default=0.5, gt=0, lt=1, description="New rate = rate x factor.")


class RewindAction(Config):
    """Go back to the last checkpoint that was marked healthy."""

    type: Literal["rewind"]
    max_attempts: int = Field(default=3, ge=1, le=100, description="Rewinds of one run before it is stopped.")


@lru_cache(maxsize=256)
def _parsed(condition: str) -> Condition:
    return Condition.parse(condition)


Action = Annotated[
    EmailAction | PageAction | StopTrainingAction | SkipBatchesAction | LowerLearningRateAction | RewindAction,
    Field(discriminator="type"),
]


class Alert(Config):
    """One rule: a metric, a condition over its points, and what to do when it held long enough."""

    metric: Word = Field(description="Name of a metric of the run, such as training_loss.")
    condition: str = Field(description="Such as 'value > threshold or is_nan()'; see the condition language.")
    threshold: Number | None = Field(default=None, description="What the condition calls threshold, metric units.")
    hold: Steps = Field(
        default=Span(steps=1), alias="for", description="How long the condition must hold: '3 steps' or '30s'."
    )
    actions: tuple[Action, ...] = Field(min_length=1, description="Done in this order.")

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

    @property
    def parsed(self) -> Condition:
        return _parsed(self.condition)

    @property
    def effective_threshold(self) -> float | None:
        """What ``threshold`` stands for: the declared one, or the built-in one of a loss."""
        return LOSS_THRESHOLD if self.threshold is None and self.metric in _LOSSES else self.threshold

    def fires(self, history: Sequence[float]) -> bool:
        """Return whether the condition holds at each of the last ``for`` steps of ``history``, oldest point first.

        A rule with a time instead of steps is asked at the newest point only: the caller keeps the clock.
        """
        steps, condition = self.hold.steps or 1, self.parsed
        ends = range(len(history) - steps + 1, len(history) + 1)
        return len(history) >= steps and all(
            condition.holds(history[max(0, end - condition.window) : end], threshold=self.effective_threshold)
            for end in ends
        )
