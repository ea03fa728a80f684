"""Runs of trainings as their streams tell them, read once and then only what is new.

A process keeps the newest MAX_VIEWS runs that were looked at. A view holds thinned series of the metrics that are
shown, the newest events, and the newest details, so its size does not depend on how long the training is. One look
reads for LOOK_SECONDS at most and says when there is more: the next look goes on from there.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

from pydantic import JsonValue

from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.training.streams import EVENTS, METRICS, TELEMETRY, Row, read, streams_of, tail
from deepseek_ops.web.training_series import Series

SHOWN = (
    "training_loss", "val_loss", "val_loss_old", "learning_rate", "grad_norm", "tokens_per_second", "mfu",
    "step_seconds", "expert_load_min", "expert_load_max", "experts_dead", "bias_drift", "accuracy", "recall",
)  # fmt: skip
"""Metrics that are drawn; a stream may hold any others."""
MAX_VIEWS = 16
LOOK_SECONDS = 4.0
TELEMETRY_SECONDS = 8.0
TELEMETRY_ROWS = 1800
"""Newest rows of a node that are shown: half an hour."""
MAX_NODES = 8
"""Nodes that are read for one page."""
ROUTINE = frozenset({"checkpoint", "checkpoint_uploaded", "checkpoint_interval"})
"""Kinds of events that come by the thousand: they must not push the others out."""
SUPERVISED = frozenset({"hang", "stacks", "stragglers", "restart", "failed", "spot_notice"})
"""Kinds of events that are told outside the ranks, and so in the job's own stream only."""
MAX_EVENTS, MAX_ROUTINE, MAX_DETAILS = 300, 200, 128
SILENT_SECONDS = 300.0

Supervised = Callable[[str], Iterable[Mapping[str, JsonValue]]]
"""Gives the newest events of a run's job, by the plan's fingerprint; they are filtered here."""
_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf, "inf": math.inf, "-inf": -math.inf}
_ENDS = {"finished": "finished", "stopped": "stopped", "failed": "failed"}


@dataclass(eq=False)
class NoSuchRunError(PermanentError):
    """No training of this plan has written anything."""

    plan: str

    def __str__(self) -> str:
        return f"run {self.plan} has no streams in this store. Take an id of the list of runs."


@dataclass(slots=True)
class Node:
    """What one node's machine did lately, by Unix time."""

    name: str
    host: str = ""
    series: dict[str, Series] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    """Greatest possible values, such as the memory there is."""


class RunView:
    """What is known of one run. Whoever uses it holds ``lock``."""

    def __init__(self, store: ObjectStore, plan: str) -> None:
        self.plan = plan
        self.lock = threading.Lock()
        self.series = {name: Series() for name in SHOWN}
        self.step = -1
        self.attempt = 0
        self.rows = 0
        self.started_at: float | None = None
        self.seen_at: float | None = None
        self.total_steps: int | None = None
        self.ended = ""
        self.more = False
        """Whether there is more to read than one look took."""
        self.events: deque[Row] = deque(maxlen=MAX_EVENTS)
        self.routine: deque[Row] = deque(maxlen=MAX_ROUTINE)
        self.details: deque[Row] = deque(maxlen=MAX_DETAILS)
        self.nodes: list[Node] = []
        self.num_nodes = 0
        self.supervised: list[Row] = []
        self._store = store
        self._prefix = f"runs/{plan}"
        self._after = {METRICS: -1, EVENTS: -1}
        self._looked = float("-inf")
        self._looked_from = 0

    @property
    def revision(self) -> str:
        """Changes when there is something new to show; the same in every process that has read as much."""
        newest = max((ends[1] for node in self.nodes for s in node.series.values() if (ends := s.ends)), default=0)
        return f"{self._after[METRICS]}.{self._after[EVENTS]}.{newest:.0f}.{len(self.supervised)}.{self.state}"

    @property
    def state(self) -> str:
        """``finished``, ``stopped`` or ``failed`` as the run said; else ``running``, or ``silent`` after a while."""
        if self.ended:
            return self.ended
        return "running" if time.time() - (self.seen_at or 0.0) < SILENT_SECONDS else "silent"

    def look(self, *, nodes_from: int = 0, supervised: Supervised | None = None) -> None:
        """Read what is new. Raises NoSuchRunError, DamagedSegmentError and what the store raises."""
        deadline = time.monotonic() + LOOK_SECONDS
        self.more = self._read(EVENTS, self._event, deadline) | self._read(METRICS, self._metric, deadline)
        if max(self._after.values()) < 0:
            raise NoSuchRunError(self.plan)
        if time.monotonic() - self._looked >= TELEMETRY_SECONDS or nodes_from != self._looked_from:
            self._looked, self._looked_from = time.monotonic(), nodes_from
            self._read_nodes(nodes_from)
            if supervised is not None:
                kept = [_stamped(row) for row in supervised(self.plan) if row.get("kind") in SUPERVISED]
                self.supervised = kept[-MAX_EVENTS:]

    def told(self) -> list[Row]:
        """Return the events, oldest first; those without a time of ours come where their own says."""
        return sorted([*self.routine, *self.events, *self.supervised], key=lambda row: number(row.get("at")) or 0.0)

    def eta_seconds(self) -> float | None:
        """Return how long the rest takes at the speed of the newest steps."""
        recent = [value for value in self.series["step_seconds"].recent(50) if math.isfinite(value)]
        if self.total_steps is None or not recent or self.ended:
            return None
        return max(self.total_steps - self.step, 0) * sum(recent) / len(recent)

    def _read(self, stream: str, take: Callable[[Row], None], deadline: float) -> bool:
        for segment in read(self._store, f"{self._prefix}/{stream}", after=self._after[stream]):
            for row in segment.rows:
                take(row)
            self._after[stream] = segment.number
            if time.monotonic() >= deadline:
                return True
        return False

    def _metric(self, row: Row) -> None:
        """Take a step in: it replaces itself and all beyond it; late rows of an older attempt say nothing."""
        step, attempt = row.get("step"), row.get("attempt", 0)
        if not isinstance(step, int) or not isinstance(attempt, int) or attempt < self.attempt:
            return
        if step <= self.step:
            for series in self.series.values():
                series.cut(step)
        self.attempt, self.step = attempt, step
        self.rows += 1
        self._seen(row)
        for name, given in row.items():
            shown = self.series.get(name)
            if shown is not None and (value := given if type(given) is float else number(given)) is not None:
                shown.add(step, value)

    def _event(self, row: Row) -> None:
        kind = str(row.get("kind", ""))
        self._seen(row)
        if kind == "experts":
            self.details.append(row)
            return
        (self.routine if kind in ROUTINE else self.events).append(row)
        if isinstance(total := row.get("total_steps"), int):
            self.total_steps = total
        if kind in ("started", "resumed", *_ENDS):
            self.ended = _ENDS.get(kind, "")

    def _seen(self, row: Row) -> None:
        at = number(row.get("at"))
        if at is not None:
            self.started_at = at if self.started_at is None else min(self.started_at, at)
            self.seen_at = at if self.seen_at is None else max(self.seen_at, at)

    def _read_nodes(self, start: int) -> None:
        names = streams_of(self._store, f"{self._prefix}/{TELEMETRY}")
        self.num_nodes = len(names)
        self.nodes = [
            _node(name, tail(self._store, f"{self._prefix}/{TELEMETRY}/{name}", TELEMETRY_ROWS))
            for name in names[start : start + MAX_NODES]
        ]


class Runs:
    """The runs of one store, and the views of those that were looked at lately."""

    def __init__(self, opened: Callable[[], ObjectStore], supervised: Supervised | None = None) -> None:
        self.supervised = supervised
        self._opened = opened
        self._views: OrderedDict[str, RunView] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def store(self) -> ObjectStore:
        return self._opened()

    def view(self, plan: str) -> RunView:
        """Return the view of a run, which may have to read everything yet."""
        with self._lock:
            view = self._views.pop(plan, None) or RunView(self.store, plan)
            self._views[plan] = view
            while len(self._views) > MAX_VIEWS:
                self._views.popitem(last=False)
            return view

    def forget(self, plan: str) -> None:
        """Let go of a view: of a run that does not exist, or that was removed."""
        with self._lock:
            self._views.pop(plan, None)


def number(value: JsonValue) -> float | None:
    """Return the number in a row; NaN and infinities are written as text."""
    if isinstance(value, str):
        return _NUMBERS.get(value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _stamped(event: Mapping[str, JsonValue]) -> Row:
    """Return an event of a job's own stream with its time as ours have it."""
    at = 0.0
    with suppress(ValueError):
        at = datetime.fromisoformat(str(event.get("time"))).timestamp()
    return {**event, "at": at}


def _node(name: str, rows: Iterable[Row]) -> Node:
    node = Node(name)
    for row in rows:
        at = number(row.get("at"))
        if at is None:
            continue
        node.host = str(row.get("host", node.host))[:100]
        for key, value in _measured(row).items():
            if key.endswith("_total_bytes"):
                node.limits[key] = value
            else:
                node.series.setdefault(key, Series()).add(at, value)
    return node


def _measured(row: Row) -> dict[str, float]:
    gpus = row.get("gpus")
    flat: dict[str, JsonValue] = {key: value for key, value in row.items() if key not in ("at", "attempt", "node")}
    for gpu in gpus if isinstance(gpus, list) else []:
        if isinstance(gpu, dict) and isinstance(gpu.get("index"), int):
            flat.update({f"gpu{gpu.get('index')}_{key}": value for key, value in gpu.items() if key != "index"})
    return {key: value for key, given in flat.items() if (value := number(given)) is not None}
