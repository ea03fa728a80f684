"""A real training on two nodes of a Slurm cluster that loses a rank, and then a machine."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import pytest
from fixtures_slurm import NODES, SlurmCluster, slurm  # noqa: F401
from fixtures_trainer import Lab, dataset, lab  # noqa: F401
from pydantic import JsonValue

from deepseek_ops.adapters.remote_launcher.asking import NodeShape
from deepseek_ops.adapters.remote_launcher.launcher import RemoteLauncher
from deepseek_ops.adapters.stores.opening import store_environment
from deepseek_ops.core.jobs import JobPhase, JobStatus
from deepseek_ops.core.records import Checkpoint, TrainingPlan

pytestmark = [pytest.mark.slow, pytest.mark.heavy]
T = TypeVar("T")
STEPS = 32


@dataclasses.dataclass
class SlurmLab(Lab):
    """A laboratory whose trainings run on a cluster."""

    def train(self, name: str, plan: TrainingPlan, **fields: object) -> str:
        payload = {"plan": plan.dump(), "alerts": []}
        return self.submit("train", name, payload, num_ranks=plan.nproc_per_node, num_nodes=plan.num_nodes, **fields)

    scratch: Path = Path()
    """Of both nodes: they are one machine."""

    def settle(self, name: str) -> JobStatus:
        """Return the job's status once it has ended; asked seldom, because Slurm starts a program for each answer."""
        deadline = time.monotonic() + 400
        while not (status := self.launcher.status(name)).settled:
            assert time.monotonic() < deadline, f"{status}\n{self.launcher.logs(name)[0][-6000:]}"
            time.sleep(0.5)
        return status

    def folder(self, name: str, *, node: int) -> Path:
        """Return the job's folder on a node."""
        (found,) = self.scratch.glob(f"{name}-*-{node}")
        return found

    def rank_pid(self, name: str, *, node: int) -> int:
        """Return the process of a node's only rank."""
        (pid,) = json.loads((self.folder(name, node=node) / "ranks.json").read_text())["pids"]
        return int(pid)

    def until(self, name: str, condition: Callable[[], T]) -> T:
        deadline = time.monotonic() + 300
        while not (value := condition()):
            status = self.launcher.status(name)
            assert not status.settled, f"{status}\n{self.launcher.logs(name)[0][-6000:]}"
            assert time.monotonic() < deadline, f"{status}\n{self.launcher.logs(name)[0][-6000:]}"
            time.sleep(0.2)
        return value


@pytest.fixture(scope="module")
def cluster_lab(slurm: SlurmCluster, lab: Lab, tmp_path_factory) -> SlurmLab:  # noqa: F811
    scratch = tmp_path_factory.mktemp("scratch")
    engine = slurm.engine(environment={"DEEPSEEK_OPS_SCRATCH": str(scratch)})
    access = store_environment(lab.store.uri)
    launcher = RemoteLauncher(lab.store, engine, shape=NodeShape(python=sys.executable), access=access)
    fields = {field.name: getattr(lab, field.name) for field in dataclasses.fields(lab)}
    return SlurmLab(**{**fields, "launcher": launcher}, scratch=scratch)


def reached(lab: SlurmLab, name: str, step: int, *, after: Mapping[str, JsonValue] | None = None) -> None:  # noqa: F811
    """Wait until the training has reported a step beyond ``step``, later than the event ``after``."""
    since = str(after["time"]) if after else ""
    lab.until(
        name,
        lambda: [e for e in lab.events(name, "metric") if int(str(e["step"])) > step and str(e["time"]) > since],
    )


@pytest.mark.timeout(900)
def test_a_training_survives_a_rank_and_a_machine_and_loses_no_step(cluster_lab, slurm, dataset) -> None:  # noqa: F811
    changes = {"zero_stage": 1, "eval_steps": 1000, "hyperparameters": {"max_steps": STEPS}}
    name = cluster_lab.train("slurm-two-nodes", cluster_lab.plan(dataset, ranks=1, num_nodes=2, **changes))
    reached(cluster_lab, name, 10)
    os.kill(cluster_lab.rank_pid(name, node=1), signal.SIGKILL)
    restart = cluster_lab.until(name, lambda: cluster_lab.events(name, "restart"))[0]
    assert (restart["rank"], restart["restarts"]) == (1, 1)
    reached(cluster_lab, name, 18, after=restart)

    slurm.kill_node(NODES[1])
    shutil.rmtree(cluster_lab.folder(name, node=1))
    lost = cluster_lab.settle(name)
    assert (lost.phase, lost.attempt) == (JobPhase.LOST, 1), lost
    slurm.start_node(NODES[1])
    cluster_lab.train(name, cluster_lab.plan(dataset, ranks=1, num_nodes=2, **changes))
    result = Checkpoint.load(cluster_lab.result(name))
    assert cluster_lab.launcher.status(name).attempt == 2
    assert result.step == STEPS

    resumed = cluster_lab.events(name, "resumed")
    assert [event["attempt"] for event in resumed] == [1, 2]
    assert [event["samples_skipped"] for event in resumed] == [0, 0]
    proof = cluster_lab.events(name, "resume_proof")[-1]
    assert (proof["exact"], proof["samples_repeated"], proof["samples_skipped"]) == (True, 0, 0), proof
    assert resumed[0]["from_step"] in (8, 16)
    assert resumed[1]["from_step"] in (16, 24)

    assert_nothing_was_lost(cluster_lab.launcher.events(name))


def assert_nothing_was_lost(events: list[dict[str, JsonValue]]) -> None:
    """Every step was made, and one that was made again after a loss had the same loss as the first time."""
    losses: dict[int, set[str]] = {}
    times = 0
    for event in events:
        if event["kind"] == "metric":
            losses.setdefault(int(str(event["step"])), set()).add(str(event["training_loss"]))
            times += 1
    assert sorted(losses) == list(range(1, STEPS + 1))
    assert times > STEPS, "no step was made again: nothing was lost that could show it"
    assert {step: values for step, values in losses.items() if len(values) > 1} == {}
