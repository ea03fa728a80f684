"""Runs in an experiment tracker: what it is told, and the mirror that copies the metrics of a training into it.

The training writes its metrics to the store and knows no tracker. The mirror reads those write-once segments from
outside the step path, so the store is the queue: it is bounded by nothing but the disk, survives every restart, and a
tracker that is away costs the run nothing. Points have the time of their row, which makes sending them again harmless,
and a mirror that starts over repeats itself without doubling anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pydantic import Field

from deepseek_ops.core.errors import DeepSeekOpsError, ObjectExistsError
from deepseek_ops.core.ports import Facts, ObjectStore
from deepseek_ops.core.records import DatasetVersion, Name, Record, RunManifest, TrainingPlan
from deepseek_ops.core.reporting import MetricPoint, RunEnd, TrackedRun, Tracker, TrackerRun
from deepseek_ops.training.streams import METRICS, STAMPS, Segment, read

TRACKED = "tracked-run"
"""Kind of the facts that say where a run is in a tracker, keyed ``<tracker>/<run id>``."""
MAX_POINTS = 5_000
"""Points read before they are sent: what the mirror holds in memory."""

_NO_METRICS = STAMPS | {"step"}
_NUMBERS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf, "inf": math.inf, "-inf": -math.inf}


class TrackedPlace(Record):
    """Where one run is in one tracker."""

    tracker: Name
    run_id: str = Field(description="In the tracker.")
    url: str
    commit: str
    plan: str = Field(description="Fingerprint of the TrainingPlan.")


@dataclass(slots=True)
class MirrorReport:
    """What a mirror did: points sent in all, and why the rest is missing."""

    sent: int = 0
    error: DeepSeekOpsError | None = None

    @property
    def problem(self) -> str:
        """Why points are missing, for people; empty when none is."""
        return str(self.error or "")


def tracked_run(
    manifest: RunManifest, dataset: DatasetVersion, plan: TrainingPlan, *, run_id: str, run_url: str = ""
) -> TrackedRun:
    """Return a run as a tracker shows it: found again by our run id, and with the way back to commit and data."""
    source = manifest.source
    decided = {
        **plan.hyperparameters.model_dump(mode="json", exclude_none=True),
        "seed": plan.seed,
        "method": plan.method,
        "precision": plan.precision,
        "zero_stage": plan.zero_stage,
        "world_size": plan.world_size,
        "model_type": plan.model.get("model_type", ""),
    }
    links = [f"Commit `{source.commit}` of {source.repository} ({source.short})."]
    links += [f"[Airflow run {run_id}]({run_url})"] if run_url else [f"Airflow run {run_id}"]
    return TrackedRun(
        key=run_id,
        name=f"{source.short} {source.commit[:8]}",
        experiment=manifest.name,
        params={key: value if isinstance(value, str) else json.dumps(value) for key, value in decided.items()},
        tags={
            "deepseek_ops.run_id": run_id,
            "deepseek_ops.run_url": run_url,
            "deepseek_ops.commit": source.commit,
            "deepseek_ops.ref": source.name,
            "deepseek_ops.manifest": manifest.evolve(dataset=dataset.version).fingerprint,
            "deepseek_ops.plan": plan.fingerprint,
            "deepseek_ops.dataset": dataset.name,
            "deepseek_ops.dataset_version": dataset.version,
            "deepseek_ops.environment": manifest.environment,
            "mlflow.user": "deepseek-ops",
            "mlflow.source.type": "PROJECT",
            "mlflow.source.name": source.repository,
            "mlflow.source.git.commit": source.commit,
            "mlflow.source.git.branch": source.short,
            "mlflow.source.git.repoURL": source.repository,
            "mlflow.note.content": "\n\n".join(links),
        },
    )


@dataclass(slots=True)
class Mirror:
    """Copies what a training has said so far to a tracker. One mirror belongs to one thread.

    ``sync`` and ``finish`` raise nothing of ours: what a tracker or a store says is kept in ``report``, and the next
    call goes on where the last one stood.
    """

    store: ObjectStore
    prefix: str
    """Of the run in the store: ``plan.run_prefix``."""
    tracker: Tracker
    run: TrackedRun
    report: MirrorReport = field(default_factory=MirrorReport)
    place: TrackerRun | None = None
    after: int = -1
    """Number of the last segment that was sent."""
    step: int = -1
    """The last step that was sent: steps that run again after a restart have equal values and are left out."""

    def sync(self) -> bool:
        """Send what is new. Return whether all there is has been sent."""
        try:
            place = self.place or self.tracker.start(self.run)
            self.place = place
            for segments in self._batches():
                points = [point for _, rows in segments for point in rows]
                self.tracker.log(place.run_id, points)
                self.after, self.report.sent = segments[-1][0], self.report.sent + len(points)
                self.step = max([self.step, *(point.step for point in points)])
        except DeepSeekOpsError as error:
            self.report.error = error
            return False
        self.report.error = None
        return True

    def finish(self, end: RunEnd, tags: Mapping[str, str] | None = None) -> MirrorReport:
        """Send the rest, say how the run ended, and return the report."""
        if self.sync() and self.place is not None:
            try:
                self.tracker.finish(self.place.run_id, end, tags or {})
            except DeepSeekOpsError as error:
                self.report.error = error
        return self.report

    def _batches(self) -> Iterator[list[tuple[int, list[MetricPoint]]]]:
        """Yield segments (number, points) in order, as many at a time as MAX_POINTS allows."""
        held: list[tuple[int, list[MetricPoint]]] = []
        last = self.step
        for segment in read(self.store, f"{self.prefix}/{METRICS}", after=self.after):
            points = list(_points(segment, after=last))
            last = max([last, *(point.step for point in points)])
            held.append((segment.number, points))
            if sum(len(rows) for _, rows in held) >= MAX_POINTS:
                yield held
                held = []
        if held:
            yield held


def remember_place(facts: Facts, place: TrackedPlace, *, run: str) -> None:
    """Store where a run is in a tracker; a second call changes nothing, a run that was made anew is stored instead."""
    key = f"{place.tracker}/{run}"
    try:
        facts.insert(TRACKED, key, place.dump(), run=run)
    except ObjectExistsError:
        fact = facts.get(TRACKED, key)
        if fact is not None and fact.body != place.dump():
            facts.update(fact, place.dump())


def tracker_url(facts: Facts, run: str) -> str:
    """Return where people see a run in its tracker, for the ``Tracker-Url`` of its commit; empty when nowhere."""
    found = facts.find(TRACKED, run=run, limit=10)
    return str(found[0].body.get("url", "")) if found else ""


def _points(segment: Segment, *, after: int) -> Iterator[MetricPoint]:
    """Yield the points of steps beyond ``after``, at the time their row was written.

    Rows of earlier releases have no time: theirs is their segment's, a millisecond apart, so that a chart over time has
    them in order.
    """
    end = int(segment.modified * 1000)
    seen = after
    for position, row in enumerate(segment.rows):
        step, at = row.get("step"), row.get("at")
        if not isinstance(step, int) or step <= seen:
            continue
        seen = step
        unknown = max(end - len(segment.rows) + 1 + position, 0)
        time_ms = int(at * 1000) if isinstance(at, int | float) else unknown
        for name, value in row.items():
            number = _NUMBERS.get(value) if isinstance(value, str) else value
            if name not in _NO_METRICS and isinstance(number, int | float) and not isinstance(number, bool):
                yield MetricPoint(name, float(number), step, time_ms)
