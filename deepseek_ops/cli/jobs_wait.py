"""Waiting for what was asked of a job: the answer is in its events, and an answer that says no is an error.

Our own trainer answers a request with a ``guardian`` event that has its number and whether it was done; a script's
watch with ``request`` or ``request_not_possible``. A checkpoint is done when the ``checkpoint`` event of its step
comes after that.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.jobs import JobStatus
from deepseek_ops.core.ports import Launcher

POLL_SECONDS = 0.5
Event = Mapping[str, JsonValue]


@dataclass(eq=False)
class RequestNotDoneError(PermanentError):
    """A training did not do what it was asked for."""

    job: str
    verb: str
    why: str

    def __str__(self) -> str:
        return f"job {self.job}: the {self.verb} was not done: {self.why}."


@dataclass(eq=False)
class RequestWatch:
    """Follows one request through the job's events."""

    job: str
    number: int
    verb: str
    answered: Event | None = None

    def take(self, events: Iterable[Event]) -> Event | None:
        """Return the event that says that it was done, or None so far. Raises RequestNotDoneError."""
        for event in events:
            if self.answered is None:
                self._answer(event)
            if self.answered is not None and self._settles(event):
                return event
        return None

    def _answer(self, event: Event) -> None:
        kind = event.get("kind")
        if kind == "request_not_possible" and event.get("number") == self.number:
            raise RequestNotDoneError(self.job, self.verb, "a script's own loop cannot go back in place")
        if kind == "guardian" and event.get("request") == self.number:
            if not event.get("done"):
                raise RequestNotDoneError(self.job, self.verb, str(event.get("why_not") or "the training refused it"))
            self.answered = event
        if kind == "request" and event.get("number") == self.number:
            self.answered = event

    def _settles(self, event: Event) -> bool:
        if self.answered is None or self.verb != "checkpoint":
            return self.answered is not None
        of_step = event.get("step") == self.answered.get("step")
        if event.get("kind") == "checkpoint_failed" and of_step:
            raise RequestNotDoneError(self.job, self.verb, str(event.get("problem") or "it could not be written"))
        if event.get("kind") == "metric" and not of_step:  # a rewind in the same step takes its place
            raise RequestNotDoneError(self.job, self.verb, "the training went back instead")
        return event.get("kind") == "checkpoint" and of_step


def answer(launcher: Launcher, name: str, number: int, verb: str, *, after: int) -> Event:
    """Return the event that says that the request was done, once it was.

    ``after``: events that there were before it was made. Raises RequestNotDoneError, also when the job ends first.
    """
    watch, read = RequestWatch(name, number, verb), after
    while True:
        status = launcher.status(name)
        rows = launcher.events(name, read)
        read += len(rows)
        if (event := watch.take(rows)) is not None:
            return event
        if status is None or status.settled:
            ended = "nobody knows it any more" if status is None else f"it ended before ({status.phase.value})"
            reason = "" if status is None or not status.reason else f": {status.reason.rstrip('.')}"
            raise RequestNotDoneError(name, verb, ended + reason)
        time.sleep(POLL_SECONDS)


def ended(launcher: Launcher, name: str) -> JobStatus | None:
    """Return the job's status once it has settled; None when it was retired meanwhile."""
    while (status := launcher.status(name)) is not None and not status.settled:
        time.sleep(POLL_SECONDS)
    return status
