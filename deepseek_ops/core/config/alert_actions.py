"""What an alert rule may do: tell somebody, or act on the training."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from deepseek_ops.core.config.base import Config, Matches, Problem, Problems

Recipient = Annotated[str, Matches(r"^[^@\s,;<>]+@[^@\s,;<>]+$", "a mail address such as team@example.com")]
ConnectionId = Annotated[
    str, Matches(r"^([A-Za-z0-9][A-Za-z0-9_.-]{0,199})?$", "the id of an Airflow connection, such as slack_default")
]
"""Credentials live behind the connection; the pipeline file and the events only carry its id."""


class EmailAction(Config):
    """Mail to people, through Airflow's SMTP connection."""

    type: Literal["email"]
    recipients: tuple[Recipient, ...] = Field(min_length=1, description="Mail addresses.")


class PageAction(Config):
    """Wake somebody: through the notifier behind an Airflow connection."""

    type: Literal["page"]
    connection: ConnectionId = Field(default="", description="Airflow connection id; empty = the project's routing.")


class SlackAction(Config):
    """A message to a Slack channel."""

    type: Literal["slack"]
    connection: ConnectionId = Field(default="slack_default", description="Airflow connection id.")
    channel: Annotated[str, Matches(r"^[#@]?[A-Za-z0-9][\w.-]{0,79}$", "a channel such as '#training'")] = Field(
        description="Name or id of the channel."
    )


class HttpAction(Config):
    """A POST of the event as JSON, to the address behind a connection or to an open one."""

    type: Literal["http"]
    connection: ConnectionId = Field(default="", description="Airflow connection id: address and credentials.")
    url: Annotated[
        str, Matches(r"^(https?://[^\s@?#]{1,500})?$", "https://host/path without credentials and without '?'")
    ] = Field(default="", description="An address that needs no credentials.")

    @model_validator(mode="after")
    def _one_address(self) -> HttpAction:
        if bool(self.connection) == bool(self.url):
            both = "has both connection and url." if self.url else "has neither connection nor url."
            remedy = "Keep the connection where credentials are needed, the url where none are."
            raise Problems((Problem(("type",), f"the http action {both}", remedy),))
        return self


class CheckpointAction(Config):
    """Save a checkpoint at once."""

    type: Literal["checkpoint"]
    max_attempts: int = Field(default=1, ge=1, le=1000, description="How often the rule may do this in one run.")


class SkipBatchesAction(Config):
    """Leave out the batches that come next."""

    type: Literal["skip_batches"]
    count: int = Field(default=1, ge=1, le=10_000, description="Optimiser steps to skip.")
    max_attempts: int = Field(default=1, ge=1, le=1000, description="How often the rule may do this in one run.")


class LowerLearningRateAction(Config):
    """Multiply the learning rate of all steps that follow."""

    type: Literal["lower_lr"]
    factor: float = Field(default=0.5, gt=0, lt=1, description="New rate = rate x factor.")
    max_attempts: int = Field(default=1, ge=1, le=1000, description="How often the rule may do this in one run.")


class RewindAction(Config):
    """Go back to the last healthy checkpoint from before the condition held, and leave out the batches it held at."""

    type: Literal["rewind"]
    max_attempts: int = Field(default=3, ge=1, le=100, description="How often the rule may do this in one run.")


class StopTrainingAction(Config):
    """End the training; a state that nothing has poisoned is checkpointed first."""

    type: Literal["stop_training"]

    @property
    def max_attempts(self) -> int:
        """A training ends once."""
        return 1


Act: TypeAlias = CheckpointAction | SkipBatchesAction | LowerLearningRateAction | RewindAction | StopTrainingAction
"""Steps of a ladder: what changes the training."""
Notification: TypeAlias = EmailAction | PageAction | SlackAction | HttpAction
"""What only tells somebody."""
ACTS = (CheckpointAction, SkipBatchesAction, LowerLearningRateAction, RewindAction, StopTrainingAction)
NOTIFICATIONS = (EmailAction, PageAction, SlackAction, HttpAction)
Action = Annotated[Act | Notification, Field(discriminator="type")]
