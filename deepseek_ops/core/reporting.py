"""Ports towards the places where people look: the review of a change, and experiment trackers.

Both only mirror what the facts, the store and Git hold. A run never waits for them and never fails because of them, so
their errors are for the one who reports, who tries again or says what could not be told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from deepseek_ops.core.errors import PermanentError, TransientError

ReviewState = Literal["pending", "success", "failure", "error"]
"""``failure`` is a verdict about the change, ``error`` a run that could not come to one."""
RunEnd = Literal["finished", "failed", "killed"]

STATUS_CONTEXT = "deepseek-ops"
"""Name under which a host shows our status beside those of other tools."""


@dataclass(eq=False)
class ServiceUnavailableError(TransientError):
    """A web service does not answer, answers with a server error, or asks us to come back later."""

    service: str
    request: str
    problem: str
    retry_after: float = 0.0
    """Seconds it asked for; 0 where it did not say."""

    def __str__(self) -> str:
        wait = f" It asks for a pause of {self.retry_after:.0f} s." if self.retry_after else ""
        return f"{self.service} did not serve {self.request}: {self.problem}.{wait} Check its address and its health."


@dataclass(eq=False)
class ServiceAccessError(PermanentError):
    """A web service refuses the credentials, or hides the thing from them."""

    service: str
    request: str
    problem: str

    def __str__(self) -> str:
        return (
            f"{self.service} refuses {self.request}: {self.problem}. "
            "Check the token of the connection, its rights and the name of the repository or experiment."
        )


@dataclass(eq=False)
class ServiceRefusedError(PermanentError):
    """A web service understood the request and will not do it."""

    service: str
    request: str
    problem: str

    def __str__(self) -> str:
        return f"{self.service} will not do {self.request}: {self.problem}. Change what is asked for, or its rules."


class Review(Protocol):
    """Where a team reviews changes. Adapters: GitHub, GitLab, Git notes.

    Every call may happen twice and leaves what one call leaves. Raises ServiceUnavailableError, ServiceAccessError,
    ServiceRefusedError; over Git notes the errors of GitRemote.
    """

    name: str
    """Such as ``github``, for logs."""

    def status(
        self, commit: str, state: ReviewState, summary: str, *, url: str = "", context: str = STATUS_CONTEXT
    ) -> None:
        """Set the commit's status under ``context``. A summary that is too long for the host is cut."""

    def comment(self, commit: str, body: str, *, key: str) -> list[str]:
        """Write or update the one comment ``key`` in every open request with the commit; return where people see it.

        ``body`` is Markdown. Nothing is written, and the list is empty, while no request with the commit is open.
        """


@dataclass(frozen=True, slots=True)
class TrackedRun:
    """A run as a tracker shows it."""

    key: str
    """Identity: starting a run of the same key again finds the first one."""
    name: str
    experiment: str
    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """One value of one metric at one step."""

    name: str
    value: float
    step: int
    time_ms: int
    """When it was stored, Unix milliseconds: equal for equal points however often they are sent."""


@dataclass(frozen=True, slots=True)
class TrackerRun:
    """Where a run is in a tracker."""

    run_id: str
    url: str


class Tracker(Protocol):
    """An experiment tracker. Adapters: MLflow.

    Every call may happen twice and leaves what one call leaves. Raises ServiceUnavailableError, ServiceAccessError,
    ServiceRefusedError.
    """

    name: str

    def start(self, run: TrackedRun) -> TrackerRun:
        """Find the run with this key or make it, and set its parameters and tags."""

    def log(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        """Add points; those that are there already are not added again."""

    def finish(self, run_id: str, end: RunEnd, tags: Mapping[str, str]) -> None:
        """Set how the run ended, and its last tags."""
