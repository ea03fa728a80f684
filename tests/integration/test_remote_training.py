"""A real training on two machines, which are processes here: one rank each, gloo between them, the store above."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import fixtures_trainer
import pytest
from fixtures_launcher import settled, until
from fixtures_process_engine import ProcessEngine
from fixtures_remote import Cluster
from fixtures_trainer import Lab

from deepseek_ops.core.jobs import JobPhase, JobSpec
from deepseek_ops.core.records import Checkpoint, DatasetVersion

lab, dataset = fixtures_trainer.lab, fixtures_trainer.dataset


@pytest.fixture
def cluster(lab: Lab, tmp_path: Path) -> Iterator[Cluster]:
    """Two machines beside the laboratory, on its store."""
    engine = ProcessEngine(tmp_path)
    yield Cluster(tmp_path, lab.store, engine, {})
    engine.close()


@pytest.mark.slow
@pytest.mark.heavy
def test_two_machines_train_as_two_ranks_of_one_do_through_the_loss_of_a_rank(
    lab: Lab, dataset: DatasetVersion, cluster: Cluster
) -> None:
    clean = lab.trained("one-machine", lab.plan(dataset))
    plan = lab.plan(dataset, ranks=1, num_nodes=2)
    spec = JobSpec(
        name="two-machines",
        kind="train",
        payload={"plan": plan.dump(), "alerts": []},
        num_ranks=1,
        num_nodes=2,
        environment={"OMP_NUM_THREADS": "1"},
    )
    launcher = cluster.launcher()
    launcher.submit(spec)
    until(lambda: (found := launcher.status(spec.name)).settled or (found.step or 0) > 9, within=280)
    assert not launcher.status(spec.name).settled, launcher.logs(spec.name)[0][-6000:]
    folder = next((cluster.root / "machine-1").iterdir())
    os.kill(json.loads((folder / "ranks.json").read_text())["pids"][0], signal.SIGKILL)
    status = settled(launcher, spec.name, within=300)
    log = launcher.logs(spec.name)[0]
    assert (status.phase, status.attempt, status.restarts) == (JobPhase.SUCCEEDED, 1, 1), f"{status}\n{log[-6000:]}"
    resumed = [event["from_step"] for event in cluster.events(spec.name, "resumed")]
    assert resumed == [8], log[-3000:]
    found = Checkpoint.load(launcher.result(spec.name))
    assert found.step == clean.step
    metrics = {event["step"]: event for event in launcher.events(spec.name) if event["kind"] == "metric"}
    expected = lab.rows("one-machine")
    assert metrics.keys() == expected.keys()
    for step, row in expected.items():
        assert float(str(metrics[step]["training_loss"])) == pytest.approx(row["training_loss"], rel=1e-3), step
    assert [event["reason"] for event in cluster.events(spec.name, "restart")]
