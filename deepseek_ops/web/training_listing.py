"""The runs of a store, newest first: found by their prefixes, with what the ends of their streams say."""

from __future__ import annotations

import itertools
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from deepseek_ops.core.errors import DeepSeekOpsError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.training.streams import EVENTS, METRICS, Row, read, tail
from deepseek_ops.web.training_runs import SILENT_SECONDS, number

RUN_ID = r"^[0-9a-f]{64}$"
MAX_RUNS = 2000
"""Runs whose age is looked at: ids are digests, so the newest may be anywhere among them."""
MAX_LINES = 40
"""Runs that are shown."""
_THREADS = 8
_LAST_EVENTS = 20
_FIRST_SEGMENTS = 3
_STARTS = ("started", "resumed")


@dataclass(frozen=True, slots=True)
class RunLine:
    """One run in the list."""

    plan: str
    modified: float
    what: str = ""
    """What it trains, as it said at its start."""
    state: str = "unknown"
    step: int | None = None
    total_steps: int | None = None
    loss: float | None = None
    problem: str = ""


def list_runs(store: ObjectStore) -> tuple[list[RunLine], bool]:
    """Return the newest runs, and whether there are more than were looked at.

    Two requests a run find it and its age, a few more for each that is shown.
    """
    found: list[str] = []
    for plan in _plans(store):
        found.append(plan)
        if len(found) >= MAX_RUNS:
            break
    with ThreadPoolExecutor(_THREADS) as pool:
        ages = list(pool.map(lambda plan: _modified(store, plan), found))
        dated = [(age, plan) for age, plan in zip(ages, found, strict=True) if age is not None]
        newest = sorted(dated, reverse=True)[:MAX_LINES]
        lines = list(pool.map(lambda pair: _line(store, pair[1], pair[0]), newest))
    return lines, len(found) >= MAX_RUNS


def _plans(store: ObjectStore) -> Iterator[str]:
    """Yield the ids below ``runs/``; each is found by one key, what lies below it is jumped over."""
    after = ""
    while True:
        info = next(iter(store.list("runs/", start_after=after, limit=1)), None)
        if info is None:
            return
        name = info.key.removeprefix("runs/").partition("/")[0]
        if re.match(RUN_ID, name):
            yield name
        after = max(f"runs/{name}/\U0010ffff", info.key)


def _modified(store: ObjectStore, plan: str) -> float | None:
    """Return when the run's events were written last: there are few of them, and the first step follows one."""
    return max((info.modified for info in store.list(f"runs/{plan}/{EVENTS}/")), default=None)


def _line(store: ObjectStore, plan: str, modified: float) -> RunLine:
    try:
        # A training says at its start what it is and how long; other events may come before that.
        segments = itertools.islice(read(store, f"runs/{plan}/{EVENTS}"), _FIRST_SEGMENTS)
        start = next((row for segment in segments for row in segment.rows if row.get("kind") in _STARTS), {})
        events = tail(store, f"runs/{plan}/{EVENTS}", _LAST_EVENTS)
        rows = tail(store, f"runs/{plan}/{METRICS}", 1)
    except DeepSeekOpsError as error:
        return RunLine(plan, modified, problem=str(error))
    row: Row = rows[-1] if rows else {}
    step = row.get("step")
    totals = [event["total_steps"] for event in (start, *events) if isinstance(event.get("total_steps"), int)]
    total = totals[-1] if totals else None
    seen = max([modified, *(at for one in (*rows, *events) if (at := number(one.get("at"))) is not None)])
    return RunLine(
        plan,
        seen,
        what=f"{start['purpose']} on {start['dataset']}" if {"purpose", "dataset"} <= start.keys() else "",
        state=_state(events, seen),
        step=step if isinstance(step, int) else None,
        total_steps=total if isinstance(total, int) else None,
        loss=number(row.get("training_loss")),
    )


def _state(events: list[Row], seen: float) -> str:
    for event in reversed(events):
        kind = event.get("kind")
        if kind in ("finished", "stopped"):
            return str(kind)
        if kind in _STARTS:
            break
    return "running" if time.time() - seen < SILENT_SECONDS else "silent"
