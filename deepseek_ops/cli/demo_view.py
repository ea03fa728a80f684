"""What the demo shows while it runs: one line a task, ticked off, and the loss of the training as it falls.

On a terminal the lines are redrawn in place; elsewhere (a log, CI) each change is one line.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

TICKS = {
    "success": ("✓", "green"),
    "failed": ("✗", "red"),
    "upstream_failed": ("✗", "red"),
    "skipped": ("-", "dim"),
    "running": ("●", "cyan"),
    "deferred": ("●", "cyan"),
    "up_for_retry": ("↻", "yellow"),
}
WAITING = ("·", "dim")
BLOCKS = "▁▂▃▄▅▆▇█"
SETTLED = ("success", "failed", "upstream_failed", "skipped")


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """Return the values as one line of blocks, newest right, thinned to ``width``; empty for no values."""
    if not values:
        return ""
    step = max(len(values) / width, 1.0)
    picked = [values[min(int(at * step), len(values) - 1)] for at in range(min(width, len(values)))]
    picked[-1] = values[-1]
    low, high = min(picked), max(picked)
    span = (high - low) or 1.0
    return "".join(BLOCKS[round((value - low) / span * (len(BLOCKS) - 1))] for value in picked)


@dataclass
class Row:
    """One line: a stage of the set-up or a task of a DAG run."""

    key: str
    label: str
    state: str = ""
    note: str = ""
    started: float = field(default_factory=time.monotonic)
    seconds: float | None = None


class ProgressView:
    """The demo's lines. ``update`` is called with what is known now; the view shows what has changed."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._rows: dict[str, Row] = {}
        self._live: Live | None = None
        self._loss: list[float] = []
        self._loss_text = ""

    def __enter__(self) -> ProgressView:
        if self._console.is_terminal:
            self._live = Live(self._render(), console=self._console, refresh_per_second=4, transient=False)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.update(self._render())
            self._live.stop()

    def say(self, text: str) -> None:
        """Print a line above the rows."""
        self._console.print(text, highlight=False, soft_wrap=True)

    def update(self, key: str, label: str, state: str, note: str = "", seconds: float | None = None) -> None:
        """Show a row's state (an Airflow task state) and a short note."""
        row = self._rows.setdefault(key, Row(key, label))
        changed = (row.state, row.note) != (state, note)
        if state in SETTLED and row.state not in SETTLED:
            row.seconds = seconds if seconds is not None else time.monotonic() - row.started
        if state not in ("", "scheduled", "queued") and row.state in ("", "scheduled", "queued"):
            row.started = time.monotonic()
        row.state, row.note = state, note
        if self._live is not None:
            self._live.update(self._render())
        elif changed and (state in SETTLED or state == "up_for_retry"):
            self._console.print(self._line(row), highlight=False, soft_wrap=True)

    def loss(self, values: Sequence[float], text: str) -> None:
        """Show the training's loss so far."""
        printed = len(self._loss)
        self._loss, self._loss_text = list(values), text
        if self._live is not None:
            self._live.update(self._render())
        elif values and len(values) >= printed + 10:
            self._console.print(f"    loss {sparkline(values)} {text}", highlight=False)
        else:
            self._loss = self._loss[:printed] if len(values) < printed + 10 else self._loss

    def _render(self) -> Group:
        table = Table.grid(padding=(0, 1))
        for row in self._rows.values():
            table.add_row(self._line(row))
        parts: list[Table | Text] = [table]
        if self._loss:
            parts.append(Text(f"    loss {sparkline(self._loss)} {self._loss_text}", style="cyan"))
        return Group(*parts)

    def _line(self, row: Row) -> Text:
        mark, style = TICKS.get(row.state, WAITING)
        seconds = row.seconds if row.seconds is not None else time.monotonic() - row.started
        shown = f"{seconds:6.1f} s" if row.state in (*SETTLED, "running", "deferred") else " " * 8
        return Text.assemble((f"  {mark} ", style), f"{row.label:<24}", (shown, "dim"), f"  {row.note}")
