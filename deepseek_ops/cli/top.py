"""``deepseek-ops top``: all jobs of a launcher, live in the terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import typer
from pydantic import JsonValue
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from deepseek_ops.cli.demo_view import sparkline
from deepseek_ops.cli.launcher_options import At, opened_launcher
from deepseek_ops.core.jobs import JobPhase, JobStatus
from deepseek_ops.core.ports import Launcher

HELD_POINTS = 400
_WIDE = 200
_QUIET = frozenset({"metric", "environment", "telemetry"})
_NARROWEST = {"job": 14, "phase": 9, "step": 9, "loss": 6, "": 8, "last event": 12}
_STYLES = {
    JobPhase.RUNNING: "cyan",
    JobPhase.SUCCEEDED: "green",
    JobPhase.FAILED: "red",
    JobPhase.LOST: "yellow",
    JobPhase.STOPPED: "magenta",
}


@dataclass(slots=True)
class Watched:
    """What has been read of one job so far."""

    status: JobStatus
    read: int = 0
    total: int = 0
    row: dict[str, JsonValue] = field(default_factory=dict)
    loss: list[float] = field(default_factory=list)
    said: str = ""

    def take(self, events: Sequence[Mapping[str, JsonValue]]) -> None:
        """Add the job's next events."""
        self.read += len(events)
        for event in events:
            kind = event.get("kind")
            total = event.get("total_steps")
            self.total = total if isinstance(total, int) else self.total
            if kind == "metric":
                self.row = dict(event)
                self.loss.append(_number(event.get("training_loss")))
            elif kind not in _QUIET:
                reason = event.get("reason")
                self.said = f"{kind}: {reason}" if reason else str(kind)
        del self.loss[:-HELD_POINTS]

    @property
    def remaining_seconds(self) -> float | None:
        """Seconds to the last step at the speed of the newest one; None when that is not known."""
        step, seconds = self.row.get("step"), _number(self.row.get("step_seconds"))
        if self.status.settled or not self.total or not isinstance(step, int) or not seconds > 0:
            return None
        return max(0, self.total - step) * seconds


def top(
    at: At = "",
    interval: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print it once and end.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Jobs that have ended, too.")] = False,
) -> None:
    """Watch jobs: step, loss, speed, remaining time, and what happened last."""
    launcher = opened_launcher(at)
    jobs: dict[str, Watched] = {}
    look(launcher, jobs, everything=everything)
    console = Console()
    if once or not console.is_terminal:
        print_view(jobs)
        return
    with Live(shown(jobs), console=console, screen=True, auto_refresh=False) as live:
        while True:
            time.sleep(interval)
            look(launcher, jobs, everything=everything)
            live.update(shown(jobs), refresh=True)


def print_view(jobs: Mapping[str, Watched]) -> None:
    """Print the view once; a file or a pipe is as wide as it needs to be."""
    console = Console()
    (console if console.is_terminal else Console(width=_WIDE)).print(shown(jobs))


def look(launcher: Launcher, jobs: dict[str, Watched], *, everything: bool) -> None:
    """Bring ``jobs`` up to date. Jobs that ended while we looked on stay in view."""
    for status in launcher.list():
        if status.settled and not everything and status.name not in jobs:
            continue
        watched = jobs.setdefault(status.name, Watched(status))
        watched.status = status
        watched.take(launcher.events(status.name, watched.read))


def shown(jobs: Mapping[str, Watched]) -> Group | Text:
    """Return the view: running jobs first, the longest-running on top."""
    if not jobs:
        return Text("no job is running", style="dim")
    table = Table(box=None)
    for name in ("job", "phase", "step", "loss", "", "tokens/s", "left", "attempt", "last event"):
        table.add_column(name, no_wrap=True, overflow="ellipsis", min_width=_NARROWEST.get(name, 4))
    order = sorted(jobs.values(), key=lambda one: (one.status.settled, -one.status.wall_seconds))
    for one in order:
        status = one.status
        step = status.step if status.step is not None else ""
        table.add_row(
            status.name[:28],
            Text(status.phase.value, style=_STYLES[status.phase]),
            f"{step}/{one.total}" if one.total else str(step),
            f"{one.loss[-1]:.4f}" if one.loss else "",
            Text(sparkline([value for value in one.loss if value == value], width=24), style="cyan"),
            f"{_number(one.row.get('tokens_per_second')):,.0f}" if one.loss else "",
            _span(one.remaining_seconds),
            f"{status.attempt}" + (f" +{status.restarts}" if status.restarts else ""),
            (status.reason if status.settled and status.reason else one.said)[:60],
        )
    running = [one for one in order if not one.status.settled]
    seconds = sum(one.status.device_seconds for one in order)
    head = f"{len(running)} running, {len(order) - len(running)} ended; {seconds:,.0f} device-seconds"
    return Group(Text(head, style="bold"), table)


def _span(seconds: float | None) -> str:
    if seconds is None:
        return ""
    hours, rest = divmod(int(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


def _number(value: JsonValue) -> float:
    """Return a metric as a number; what JSON cannot say travels as a text such as "NaN"."""
    if isinstance(value, bool) or value is None:
        return float("nan")
    try:
        return float(value) if isinstance(value, int | float | str) else float("nan")
    except ValueError:
        return float("nan")
