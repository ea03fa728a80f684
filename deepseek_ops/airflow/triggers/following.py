"""What a job does while its task is deferred: its log in the task's log, its progress in XCom, its alerts to people."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pydantic import JsonValue

if TYPE_CHECKING:
    from deepseek_ops.core.jobs import JobStatus
    from deepseek_ops.core.ports import Facts, Launcher

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 15.0
"""Between two notes of the progress: each is a request to Airflow's API server."""
_SAID = ("alert", "guardian", "hang", "stragglers", "restart", "resumed", "checkpoint_upload_delayed", "resume_proof")
"""Kinds of events that are worth a line in the task's log; alerts are told to people besides."""


@dataclass(slots=True)
class JobFollower:
    """One task's view of its job. ``look`` is called once a poll and raises nothing of the job's.

    A triggerer that starts over follows from the beginning: the log appears again in the log of the new triggerer, and
    nobody is told twice, because what has been delivered is noted in the facts.
    """

    launcher: Launcher
    job: str
    run: str
    facts: Callable[[], Facts]
    note: Callable[[dict[str, JsonValue]], None]
    """Keeps the newest progress where people see it."""
    offset: int = 0
    read: int = 0
    total: int = 0
    row: dict[str, JsonValue] = field(default_factory=dict)
    noted: float = 0.0

    def look(self, status: JobStatus) -> None:
        """Copy what is new of the log, and act on what is new of the events."""
        text, self.offset = self.launcher.logs(self.job, self.offset)
        for line in text.splitlines():
            log.info("%s", line)
        events = self.launcher.events(self.job, self.read)
        self.read += len(events)
        self._take(events)
        now = time.monotonic()
        if self.row and (status.settled or now - self.noted >= PROGRESS_SECONDS):
            self.noted = now
            self.note(self.progress(status))

    def progress(self, status: JobStatus) -> dict[str, JsonValue]:
        """Return step, loss, speed and remaining seconds as far as the job has told them."""
        step, seconds = self.row.get("step"), self.row.get("step_seconds")
        known: dict[str, JsonValue] = {
            name: self.row[name]
            for name in ("step", "training_loss", "val_loss", "tokens_per_second")
            if name in self.row
        }
        if self.total:
            known["total_steps"] = self.total
        if self.total and isinstance(step, int) and isinstance(seconds, int | float):
            known["eta_seconds"] = round(max(0, self.total - step) * float(seconds), 1)
        return {**known, "attempt": status.attempt, "restarts": status.restarts}

    def _take(self, events: Sequence[Mapping[str, JsonValue]]) -> None:
        from deepseek_ops.airflow.alerting import tell_people

        for event in events:
            kind, total = str(event.get("kind")), event.get("total_steps")
            self.total = total if isinstance(total, int) else self.total
            if kind == "metric":
                self.row = dict(event)
            elif kind in _SAID:
                shown = {name: value for name, value in event.items() if name not in ("kind", "time", "rank", "notify")}
                log.info("%s: %s", kind, str(event.get("reason") or shown)[:2000])
            if event.get("notify"):
                tell_people(event, facts=self.facts(), job=self.job, run=self.run)
