"""Copies of a training's metrics for tools that teams look at: TensorBoard event files, and a file for Prometheus.

Both are switched on by a variable in the job's environment:

    DEEPSEEK_OPS_TENSORBOARD=<folder>      event files, one more after each restart; ``tensorboard --logdir`` shows them
    DEEPSEEK_OPS_PROMETHEUS=<file.prom>    the newest values, for the textfile collector of Prometheus' node exporter

Relative paths are below the job's work folder. One thread writes for all of them every two seconds. A step puts its
metrics into a bounded queue and goes on; when a mirror cannot keep up the oldest go. A mirror that fails says so in one
event and is left alone: the stream in the store has everything. (MLflow and Weights & Biases are fed from that stream,
by the pipeline.)
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from prometheus_client import Gauge

TENSORBOARD_VARIABLE = "DEEPSEEK_OPS_TENSORBOARD"
PROMETHEUS_VARIABLE = "DEEPSEEK_OPS_PROMETHEUS"
SECONDS = 2.0
MAX_QUEUED = 10_000
"""Steps that wait for the mirrors."""

_log = logging.getLogger(__name__)

Say = Callable[[str, Mapping[str, object]], None]


@dataclass(frozen=True, slots=True)
class Point:
    """The metrics of one step."""

    step: int
    at: float
    """Unix seconds."""
    metrics: Mapping[str, float]


class Sink(Protocol):
    """Where metrics are copied to. Everything is called by one thread."""

    name: str

    def write(self, points: Sequence[Point]) -> None:
        """Take points in order; may raise OSError."""

    def close(self) -> None:
        """Write what is held."""


class TensorBoardFiles:
    """Event files below a folder."""

    name = "tensorboard"

    def __init__(self, folder: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._events, self._summaries = event_pb2, summary_pb2
        self._writer = EventFileWriter(str(folder))
        self._begun = False

    def write(self, points: Sequence[Point]) -> None:
        """Add scalars. The first point tells TensorBoard to forget what an earlier start had written beyond it."""
        for point in points:
            if not self._begun:
                log = self._events.SessionLog(status=self._events.SessionLog.START)
                self._writer.add_event(self._events.Event(wall_time=point.at, step=point.step, session_log=log))
                self._begun = True
            values = [self._summaries.Summary.Value(tag=tag, simple_value=v) for tag, v in point.metrics.items()]
            summary = self._summaries.Summary(value=values)
            self._writer.add_event(self._events.Event(wall_time=point.at, step=point.step, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        """Write what is held and close the file."""
        self._writer.close()


class PrometheusFile:
    """The newest values in Prometheus' text format, replaced as a whole so that nobody reads half of it."""

    name = "prometheus"

    def __init__(self, path: Path, job: str) -> None:
        from prometheus_client import CollectorRegistry

        self._path = path
        self._job = job
        self._registry = CollectorRegistry()
        self._gauges: dict[str, Gauge] = {}
        path.parent.mkdir(parents=True, exist_ok=True)

    def write(self, points: Sequence[Point]) -> None:
        """Replace the file by the values of the newest point and, of metrics it lacks, the last known ones."""
        from prometheus_client import write_to_textfile

        for point in points:
            for name, value in {**point.metrics, "step": float(point.step), "reported_seconds": point.at}.items():
                self._gauge(name).labels(job_name=self._job).set(value)
        write_to_textfile(str(self._path), self._registry)

    def close(self) -> None:
        """Remove the file: a training that has ended has no current values."""
        self._path.unlink(missing_ok=True)

    def _gauge(self, name: str) -> Gauge:
        from prometheus_client import Gauge

        if name not in self._gauges:
            metric = "deepseek_training_" + re.sub(r"[^a-zA-Z0-9_]", "_", name)
            self._gauges[name] = Gauge(metric, f"{name} of the newest step", ["job_name"], registry=self._registry)
        return self._gauges[name]


class Mirrors:
    """The thread that feeds the sinks, between ``__enter__`` and ``__exit__``."""

    def __init__(self, openers: Mapping[str, Callable[[], Sink]], say: Say, *, seconds: float = SECONDS) -> None:
        self._openers = openers
        self._say = say
        self._seconds = seconds
        self._queue: deque[Point] = deque(maxlen=MAX_QUEUED)
        self._dropped = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="training-mirrors", daemon=True)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], work: Path, say: Say) -> Mirrors | None:
        """Return the mirrors that the job's environment asks for; None when it asks for none."""
        folder, file = environment.get(TENSORBOARD_VARIABLE), environment.get(PROMETHEUS_VARIABLE)
        openers: dict[str, Callable[[], Sink]] = {}
        if folder:
            openers["tensorboard"] = lambda: TensorBoardFiles(work / folder)
        if file:
            openers["prometheus"] = lambda: PrometheusFile(work / file, job=work.parent.name)
        return cls(openers, say) if openers else None

    def put(self, step: int, metrics: Mapping[str, float]) -> None:
        """Queue the metrics of a step; never waits."""
        self._dropped += len(self._queue) == MAX_QUEUED
        self._queue.append(Point(step, time.time(), dict(metrics)))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        opened = {name: self._guarded(name, opener) for name, opener in self._openers.items()}
        sinks = [sink for sink in opened.values() if sink is not None]
        last = False
        while not last:
            last = self._ended.wait(self._seconds)
            points = [self._queue.popleft() for _ in range(len(self._queue))]
            if points:
                sinks = [sink for sink in sinks if self._guarded(sink.name, partial(_written, sink, points))]
        for sink in sinks:
            self._guarded(sink.name, partial(_closed, sink))
        if self._dropped:
            _log.warning("mirrors: %d steps were dropped", self._dropped)

    def _guarded(self, name: str, action: Callable[[], Sink]) -> Sink | None:
        """Return what the action returns, or None after saying why it failed."""
        try:
            return action()
        except Exception as error:  # noqa: BLE001  (whatever a foreign library says, it ends no training)
            _log.warning("the mirror to %s ended", name, exc_info=True)
            self._say("mirror_ended", {"mirror": name, "reason": f"{type(error).__name__}: {error}"})
            return None


def _written(sink: Sink, points: Sequence[Point]) -> Sink:
    sink.write(points)
    return sink


def _closed(sink: Sink) -> Sink:
    sink.close()
    return sink
