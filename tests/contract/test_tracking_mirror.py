"""The mirror of a training: every point in the tracker once and at its step, and one that is away costs nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import deepseek_ops.pipeline.tracking as tracking
from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.adapters.stores import open_store
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import DatasetVersion, GitRef, Hyperparameters, RunManifest, TrainingPlan
from deepseek_ops.core.reporting import MetricPoint, RunEnd, ServiceUnavailableError, TrackedRun, TrackerRun
from deepseek_ops.pipeline.tracking import Mirror, TrackedPlace, remember_place, tracked_run, tracker_url

RUN = TrackedRun("run-1", "main", "tiny")


@dataclass
class Notebook:
    """A tracker in memory that keeps points as MLflow does: equal ones once. Stumbles where a test says so."""

    name: str = "notebook"
    points: set[MetricPoint] = field(default_factory=set)
    calls: int = 0
    fails_at: frozenset[int] = frozenset()
    ended: str = ""

    def start(self, run: TrackedRun) -> TrackerRun:
        self._call()
        return TrackerRun(run.key, f"http://notebook/{run.key}")

    def log(self, run_id: str, points: Sequence[MetricPoint]) -> None:
        half = len(points) // 2
        self.points.update(points[:half])
        self._call()  # a request that fails may have been carried out in part
        self.points.update(points[half:])

    def finish(self, run_id: str, end: RunEnd, tags: Mapping[str, str]) -> None:
        self._call()
        self.ended = end

    def _call(self) -> None:
        self.calls += 1
        if self.calls in self.fails_at:
            raise ServiceUnavailableError(self.name, f"call {self.calls}", "away")

    def curve(self, name: str = "loss") -> list[tuple[int, float]]:
        return sorted((point.step, point.value) for point in self.points if point.name == name)


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(f"file://{tmp_path / 'store'}", {})


def segment(store: ObjectStore, number: int, steps: range, **more: object) -> None:
    rows = [{"step": step, "loss": 10.0 - step, **more} for step in steps]
    store.create(f"runs/p/metrics/{number:06d}.jsonl", b"".join(json.dumps(row).encode() + b"\n" for row in rows))


def test_what_was_written_since_is_sent_and_nothing_twice(store: ObjectStore) -> None:
    notebook = Notebook()
    mirror = Mirror(store, "runs/p", notebook, RUN)
    assert mirror.sync()
    assert notebook.curve() == []
    segment(store, 0, range(3))
    mirror.sync()
    assert notebook.curve() == [(0, 10.0), (1, 9.0), (2, 8.0)]
    segment(store, 1, range(3, 5))
    assert mirror.finish("finished").sent == 5
    assert notebook.curve() == [(step, 10.0 - step) for step in range(5)]
    assert notebook.ended == "finished"


def test_steps_that_ran_again_after_a_restart_are_points_once(store: ObjectStore) -> None:
    notebook = Notebook()
    segment(store, 0, range(10))
    mirror = Mirror(store, "runs/p", notebook, RUN)
    mirror.sync()
    segment(store, 1, range(6, 14))
    mirror.sync()
    assert notebook.curve() == [(step, 10.0 - step) for step in range(14)]


@pytest.mark.parametrize("restart", [False, True], ids=["same mirror", "new mirror"])
@pytest.mark.parametrize("fails_at", [{1}, {2}, {3}, {2, 3, 4}])
def test_a_tracker_that_stumbles_anywhere_has_all_points_once_in_the_end(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, restart: bool, fails_at: set[int]
) -> None:
    monkeypatch.setattr(tracking, "MAX_POINTS", 4)
    notebook = Notebook(fails_at=frozenset(fails_at))
    for number in range(4):
        segment(store, number, range(number * 3, number * 3 + 3))
    mirror = Mirror(store, "runs/p", notebook, RUN)
    said = []
    while not mirror.sync():
        said.append(mirror.report.problem)
        if restart:
            mirror = Mirror(store, "runs/p", notebook, RUN)
    assert len(said) == len(fails_at)
    assert "away" in said[0]
    assert mirror.report.problem == ""
    assert notebook.curve() == [(step, 10.0 - step) for step in range(12)]


def test_a_tracker_that_stays_away_is_said_and_raises_nothing(store: ObjectStore) -> None:
    segment(store, 0, range(3))
    notebook = Notebook(fails_at=frozenset(range(99)))
    report = Mirror(store, "runs/p", notebook, RUN).finish("failed")
    assert report.sent == 0
    assert "notebook did not serve call 1: away" in report.problem


def test_values_that_are_no_numbers_in_json_are_numbers_again(store: ObjectStore) -> None:
    segment(store, 0, range(1), nan="NaN", up="Infinity", text="spike", flag=True)
    notebook = Notebook()
    Mirror(store, "runs/p", notebook, RUN).sync()
    values = {point.name: point.value for point in notebook.points}
    assert math.isnan(values.pop("nan"))
    assert values == {"loss": 10.0, "up": math.inf}


def test_a_run_tells_the_way_back_to_its_commit_and_its_data(tmp_path: Path) -> None:
    ref = GitRef(repository="https://host/team/model", name="refs/heads/exp/lr", commit="a" * 40)
    manifest = RunManifest(
        name="tiny", source=ref, tree="b" * 40, config_digest="c" * 64, environment="e", software="1"
    )
    dataset = DatasetVersion(name="corpus", version="d" * 64, tree="f" * 64, num_files=1, num_bytes=1)
    numbers = Hyperparameters(learning_rate=0.001, batch_size=8)
    plan = TrainingPlan(dataset=dataset, model={"model_type": "deepseek_v3"}, hyperparameters=numbers)
    run = tracked_run(manifest, dataset, plan, run_id="manual__1", run_url="http://airflow/1")
    assert run.params["learning_rate"] == "0.001"
    assert run.params["model_type"] == "deepseek_v3"
    assert run.tags["mlflow.source.git.commit"] == run.tags["deepseek_ops.commit"] == "a" * 40
    assert run.tags["deepseek_ops.manifest"] == manifest.evolve(dataset=dataset.version).fingerprint
    assert run.tags["deepseek_ops.dataset_version"] == dataset.version
    facts = open_facts(f"sqlite:///{tmp_path / 'facts.db'}")
    assert tracker_url(facts, "manual__1") == ""
    for url in ("http://mlflow/1", "http://mlflow/2"):
        place = TrackedPlace(tracker="mlflow", run_id="1", url=url, commit="a" * 40, plan=plan.fingerprint)
        for _ in range(2):
            remember_place(facts, place, run="manual__1")
        assert tracker_url(facts, "manual__1") == url
