"""The training pages as HTML: the list of runs, a run with its sections, and a run as JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import JsonValue

from deepseek_ops.web.frames import TRAINING
from deepseek_ops.web.markup import Child, Html, address, el, table
from deepseek_ops.web.training_listing import RunLine
from deepseek_ops.web.training_runs import RunView
from deepseek_ops.web.training_sections import as_text, sections, state_chip, when

_SHORT = 12


def runs_page(base: str, lines: Sequence[RunLine], more: bool, store: str) -> Html:
    """Return the list of runs."""
    rows: list[list[Child]] = [
        [
            el("a", line.plan[:_SHORT], href=address(base, "runs", line.plan), class_="id"),
            line.what,
            state_chip(line.state) if not line.problem else el("span", line.problem, class_="problem"),
            "" if line.step is None else f"{line.step:,}" + (f" of {line.total_steps:,}" if line.total_steps else ""),
            "" if line.loss is None else as_text(line.loss),
            when(line.modified),
        ]
        for line in lines
    ]
    heads = ("Run", "Training", "State", "Step", "Loss", "Last heard of (UTC)")
    shown = table("The newest runs", heads, rows, numbers=(3, 4)) if rows else el("p", "No training has run.")
    note = el("p", "There are more runs than were looked at: some newer ones may be missing.") if more else None
    return TRAINING.page(base, "Training", el("p", "Store ", el("code", store), class_="lead"), shown, note)


def run_page(base: str, view: RunView, *, nodes_from: int) -> Html:
    """Return the page of one run. Its script asks for the sections again; without scripts it is as true and stands."""
    live = address(base, "api", "runs", view.plan, "live", nodes=nodes_from or None)
    bar = el(
        "p",
        el("button", "Pause", type="button", id="pause", hidden=True),
        el("span", "as of the last load", id="fresh", role="status"),
        el("a", "Load again", href=address(base, "runs", view.plan, nodes=nodes_from or None)),
        class_="bar",
    )
    found = sections(base, view, nodes_from=nodes_from)
    parts = [el("section", part, id=name) for name, part in found.items()]
    now: dict[str, str] = {"revision": view.revision, "state": view.state, "more": str(view.more).lower()}
    known = {f"data_{name}": value for name, value in now.items()}
    body = el("div", parts, id="live", data_from=live, **known)
    return TRAINING.page(base, f"Run {view.plan[:_SHORT]}", bar, body, script="training.js")


def problem_page(base: str, status: int, problem: str) -> Html:
    """Return what went wrong, and the way back."""
    return TRAINING.page(base, f"Error {status}", el("p", problem, class_="problem", role="alert"))


def shown_json(view: RunView) -> dict[str, JsonValue]:
    """Return what the page shows as JSON: state, newest values, thinned curves [step, mean, least, greatest]."""
    curves: dict[str, JsonValue] = {}
    for name, series in view.series.items():
        columns = series.columns(*(series.ends or (0.0, 1.0)), 300)
        curves[name] = [[c.first, _finite(c.mean), _finite(c.low), _finite(c.high), c.bad] for c in columns]
    return {
        "plan": view.plan,
        "state": view.state,
        "step": view.step,
        "total_steps": view.total_steps,
        "attempt": view.attempt,
        "eta_seconds": view.eta_seconds(),
        "revision": view.revision,
        "curves": {name: points for name, points in curves.items() if points},
        "events": list(view.told()),
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
