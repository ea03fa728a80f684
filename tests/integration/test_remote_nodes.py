"""Trainings on two machines, which are processes here, each with a folder of its own: all they share is the store."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import fixtures_remote
from fixtures_launcher import job, settled, until
from fixtures_remote import Cluster

from deepseek_ops.core.jobs import JobPhase, JobSpec

cluster = fixtures_remote.cluster


def march(tmp_path: Path, *, ranks: int = 1, **order: object) -> JobSpec:
    """Return a training on two nodes whose ranks count in step; the counts are what they resume from."""
    marks = tmp_path / "marks"
    marks.mkdir()
    body = {"steps": 150, "marks": str(marks), **order}
    return job("march", body, kind="train", num_ranks=ranks, num_nodes=2)  # type: ignore[arg-type]


def test_two_machines_are_one_world_and_their_words_are_in_one_log(cluster: Cluster, tmp_path: Path) -> None:
    spec = march(tmp_path, ranks=2, steps=10)
    launcher = cluster.launcher()
    launcher.submit(spec)
    status = settled(launcher, spec.name)
    assert status.phase is JobPhase.SUCCEEDED, launcher.logs(spec.name)[0]
    assert launcher.result(spec.name)["rank"] == 0
    runs = cluster.events(spec.name, "run")
    assert sorted(run["variables"]["RANK"] for run in runs) == ["0", "1", "2", "3"]  # type: ignore[index,call-overload]
    assert {run["variables"]["WORLD_SIZE"] for run in runs} == {"4"}  # type: ignore[index,call-overload]
    assert len({run["variables"]["MASTER_PORT"] for run in runs}) == 1  # type: ignore[index,call-overload]
    assert [event.get("node", 0) for event in cluster.events(spec.name, "node_ended")] == [1]
    assert len(cluster.events(spec.name, "ended")) == 1, "the job ends once"
    lines = launcher.logs(spec.name)[0].splitlines()
    beginnings = {line.partition("--- attempt 1")[0] for line in lines if "--- attempt 1" in line}
    assert beginnings == {"", "[node 1] "}
    assert abs(status.device_seconds - 4 * status.wall_seconds) < 0.01
    until(lambda: all(process.poll() == 0 for process in cluster.engine.runs[cluster.engine_id(spec.name)].processes))


def test_a_rank_that_dies_on_one_machine_restarts_those_of_both(cluster: Cluster, tmp_path: Path) -> None:
    spec = march(tmp_path)
    launcher = cluster.launcher()
    launcher.submit(spec)
    runs = until(lambda: found if len(found := cluster.events(spec.name, "run")) == 2 else None)
    victim = next(int(str(run["pid"])) for run in runs if run["rank"] == 1)
    until(lambda: (tmp_path / "marks" / "march-1").exists())
    os.kill(victim, signal.SIGKILL)
    status = settled(launcher, spec.name)
    assert (status.phase, status.attempt, status.restarts) == (JobPhase.SUCCEEDED, 1, 1), status
    again = cluster.events(spec.name, "run")[2:]
    assert sorted(run["rank"] for run in again) == [0, 1]  # type: ignore[type-var]
    assert min(int(str(run["started_at"])) for run in again) > 0, "it began anew instead of resuming"


def test_a_rank_that_fails_on_another_machine_fails_the_job_with_its_reason(cluster: Cluster, tmp_path: Path) -> None:
    spec = march(tmp_path, fail_rank=1, fail_at=5)
    cluster.launcher().submit(spec)
    status = settled(cluster.launcher(), spec.name)
    assert (status.phase, status.reason) == (JobPhase.FAILED, "ValueError: this rank cannot")


def test_a_stop_reaches_both_machines(cluster: Cluster, tmp_path: Path) -> None:
    spec = march(tmp_path, steps=100_000)
    cluster.launcher().submit(spec)
    until(lambda: len(cluster.events(spec.name, "run")) == 2)
    cluster.launcher().stop(spec.name, "enough")
    status = settled(cluster.launcher(), spec.name)
    assert status.phase is JobPhase.STOPPED
    assert "enough" in status.reason
