"""What starts a run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, field_validator

from deepseek_ops.core.config.base import Config, Duration, Glob, ObjectUri
from deepseek_ops.core.config.globs import matches_paths, matches_ref
from deepseek_ops.core.quantities import parse_duration

_CRON_FIELD = re.compile(r"[\dA-Za-z*,/#?LW-]+")
_CRON_NAMES = ("@hourly", "@daily", "@weekly", "@monthly", "@yearly")


class GitPushTrigger(Config):
    """A push to a branch whose name and changed paths both match; one that changes documentation only never does.

    ``concurrency`` says what a push does to runs of earlier pushes to its branch that have not ended. Without a word
    they go on side by side: waiting and stopping are both surprises that a team has to choose.
    """

    type: Literal["git-push"]
    branches: tuple[Glob, ...] = Field(
        default=("main",), min_length=1, description="Branch globs; '*' stays within one segment, '!' excludes."
    )
    paths: tuple[Glob, ...] = Field(default=(), description="Path globs; none means any change.")
    run: Literal["retrain"] = Field(default="retrain", description="What the push starts.")
    debounce: Duration | None = Field(
        default=None, description="How long a branch must rest: pushes in a row make one run, of the newest."
    )
    concurrency: Literal["queue", "supersede", "parallel"] = Field(
        default="parallel",
        description="While runs of earlier pushes to the branch go on: wait for them, stop them, or run beside them.",
    )

    def wants(self, branch: str, paths: Sequence[str]) -> bool:
        """Return whether a push to the branch (short name) that changed these paths starts a run."""
        return matches_ref(self.branches, branch) and matches_paths(self.paths, paths)


class GitTagTrigger(Config):
    """A tag that is pushed."""

    type: Literal["git-tag"]
    tags: tuple[Glob, ...] = Field(default=("deepseek-v*",), min_length=1, description="Tag globs.")
    run: Literal["release", "retrain"] = Field(default="release", description="What the tag starts.")

    def wants(self, tag: str, paths: Sequence[str] = ()) -> bool:  # noqa: ARG002  (one shape for every ref trigger)
        """Return whether the tag (short name) starts a run; a tag changes no paths of its own."""
        return matches_ref(self.tags, tag)


class DataArrivalTrigger(Config):
    """New raw data under a prefix."""

    type: Literal["data-arrival"]
    uri: ObjectUri = Field(description="Prefix to watch, such as s3://data-lake/raw/deepseek/.")
    settle: Duration = Field(
        default=parse_duration("5m"), description="Time without new objects after which the arrival is complete."
    )
    run: Literal["retrain", "ingest"] = Field(default="retrain", description="What the arrival starts.")


class ScheduleTrigger(Config):
    """A time of the day or week."""

    type: Literal["schedule"]
    cron: str = Field(description="Cron expression of five fields, such as '0 2 * * 0', or @daily and the like.")
    timezone: str = Field(default="UTC", pattern=r"^[A-Za-z][A-Za-z0-9_+/-]*$", description="IANA time zone.")
    run: Literal["retrain"] = Field(default="retrain", description="What the schedule starts.")

    @field_validator("cron")
    @classmethod
    def _cron(cls, value: str) -> str:
        fields = value.split()
        if value not in _CRON_NAMES and (len(fields) != 5 or not all(map(_CRON_FIELD.fullmatch, fields))):
            raise ValueError("write five cron fields such as '0 2 * * 0', or one of " + ", ".join(_CRON_NAMES))
        return value


DOCUMENTATION = (
    "**/*.md",
    "**/*.rst",
    "docs/**",
    "LICENSE*",
    "NOTICE*",
    "CHANGELOG*",
    "CITATION.cff",
    ".github/**",
    ".gitlab-ci.yml",
    ".gitignore",
    ".editorconfig",
)


class Changes(Config):
    """What a changed path means. The pipeline file, its lock file, raw data and pointers are known without it."""

    docs: tuple[Glob, ...] = Field(
        default=DOCUMENTATION,
        description="Files that no job is given: a push of nothing else starts no run. '!' takes a file back.",
    )


Trigger = Annotated[GitPushTrigger | GitTagTrigger | DataArrivalTrigger | ScheduleTrigger, Field(discriminator="type")]
