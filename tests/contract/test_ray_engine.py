"""Ray, for real: a cluster of two nodes on this machine keeps the promises of an engine, and trains.

All tests that need the cluster are here: it takes a minute to start and 2.5 GB of memory.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from contract_engine import EngineContract
from fixtures_launcher import job, settled, until
from fixtures_ray import PROVIDED, RayCluster, ray_cluster  # noqa: F401  (pytest fixture)
from fixtures_trainer import Lab, dataset, lab  # noqa: F401  (pytest fixtures)

from deepseek_ops.adapters.engines.ray import ForeignRayJobError, RayAccessError, RayEngine, UnsealedSecretsError
from deepseek_ops.adapters.remote_launcher import NodeShape, RemoteLauncher
from deepseek_ops.adapters.stores import store_environment
from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.core.jobs import EngineJob, JobPhase
from deepseek_ops.core.ports import Engine
from deepseek_ops.core.records import Checkpoint, TrainingPlan

pytestmark = [pytest.mark.slow, pytest.mark.heavy]
T = TypeVar("T")
STEPS = 48
PATIENCE = 240.0


def remote_launcher(cluster: RayCluster, store: LocalStore) -> RemoteLauncher:
    """Return a launcher whose jobs run on the cluster, with one CPU for each rank."""
    shape = NodeShape(python=sys.executable)
    return RemoteLauncher(store, cluster.engine(), shape=shape, access=store_environment(store.uri, {}))


def rank_of(cluster: RayCluster, name: str, *, node: int) -> int:
    """Return the process of a node's only rank."""
    (folder,) = cluster.scratch.glob(f"{name}-*-{node}")
    (pid,) = json.loads((folder / "ranks.json").read_text())["pids"]
    return int(pid)


class TestRayEngine(EngineContract):
    node_variable = "DEEPSEEK_OPS_NODE_RANK"
    patience = PATIENCE

    @pytest.fixture(scope="class")
    def engine(self, ray_cluster: RayCluster) -> RayEngine:  # noqa: F811
        ray_cluster.complete()
        return ray_cluster.engine()

    @pytest.fixture(scope="class")
    def another(self, ray_cluster: RayCluster) -> RayEngine:  # noqa: F811
        return ray_cluster.engine()

    @pytest.fixture(autouse=True)
    def _cluster(self, ray_cluster: RayCluster) -> None:  # noqa: F811
        self.cluster = ray_cluster

    def descriptions(self, engine: Engine, name: str) -> list[str]:
        """Return what Ray's API shows to whoever has the token: jobs, actors with their classes, and all logs."""
        shown = [self.cluster.get(path) for path in (f"/api/jobs/{name}", "/api/jobs/", "/logical/actors", "/nodes")]
        logs = (path.read_text(errors="replace") for path in (self.cluster.folder / "session_latest/logs").rglob("*.*"))
        return [*super().descriptions(engine, name), *shown, *logs]

    def test_the_api_shows_what_it_is_given(self, ended: EngineJob) -> None:
        assert ended.id in self.cluster.get("/api/jobs/"), "the test above would pass on an empty answer"
        assert "DEEPSEEK_OPS_RAY_SECRETS" in self.cluster.get(f"/api/jobs/{ended.id}")

    def test_secrets_without_a_key_are_not_sent(self, folder: Path) -> None:
        spec = self.job(folder, "end")
        with pytest.raises(UnsealedSecretsError, match=r"CONTRACT_TOKEN.*DEEPSEEK_OPS_SEAL_KEY"):
            self.cluster.engine(seal_key="").start(spec, secrets={"CONTRACT_TOKEN": "x"})
        assert self.cluster.engine().state(spec.id) is None

    def test_a_key_that_the_nodes_do_not_have_ends_the_job_with_the_remedy(self, folder: Path) -> None:
        spec = self.job(folder, "end")
        engine = self.cluster.engine(seal_key="another-key-of-the-tests", cluster_provides=[PROVIDED])
        engine.start(spec, secrets={"CONTRACT_TOKEN": "x", PROVIDED: "is not sent"})
        assert "is not sent" not in self.cluster.get(f"/api/jobs/{spec.id}")
        assert self.settled(engine, spec.id).exit_status == 78
        assert "sealed with another key than this node's DEEPSEEK_OPS_SEAL_KEY" in engine.tail(spec.id)
        assert not self.seen(folder, spec.id)

    def test_a_wrong_token_is_refused(self) -> None:
        with pytest.raises(RayAccessError, match="RAY_AUTH_TOKEN"):
            RayEngine(self.cluster.api(token="wrong-token-0123456789012345678901")).list()

    def test_a_job_of_somebody_else_is_left_alone(self, engine: RayEngine) -> None:
        self.cluster.api().submit({"entrypoint": "true", "submission_id": "theirs.a1"})
        assert not [state for state in engine.list() if state.id == "theirs.a1"]
        with pytest.raises(ForeignRayJobError, match=r"theirs\.a1"):
            engine.start(EngineJob(id="theirs.a1", command=("true",), timeout_seconds=1, grace_seconds=1))


class TestJobsOnRay:
    """Jobs of the launcher, whose state is in a store, on the machines of the cluster."""

    @pytest.fixture(scope="class")
    def launcher(self, ray_cluster: RayCluster, tmp_path_factory: pytest.TempPathFactory) -> RemoteLauncher:  # noqa: F811
        ray_cluster.complete()
        store = LocalStore(tmp_path_factory.mktemp("jobs") / "store")
        return remote_launcher(ray_cluster, store)

    def test_a_job_returns_its_result_and_is_stopped_with_a_reason_and_of_two_submits_one_runs(self, launcher) -> None:
        stopped, done = job("wait"), job("echo", {"x": "ü $HOME"})
        for spec in (stopped, done, stopped, done):
            launcher.submit(spec, secrets={"TEST_TOKEN": "s3same-open"})
        until(lambda: launcher.status(stopped.name).step, within=PATIENCE)
        launcher.stop(stopped.name, "budget spent")
        end = settled(launcher, stopped.name, within=PATIENCE)
        assert (end.phase, end.attempt) == (JobPhase.STOPPED, 1), end
        assert "budget spent" in end.reason
        assert settled(launcher, done.name, within=PATIENCE).phase is JobPhase.SUCCEEDED
        result = launcher.result(done.name)
        assert (result["payload"], result["secret_length"]) == ({"x": "ü $HOME"}, len("s3same-open"))
        for name in (stopped.name, done.name):
            assert len([event for event in launcher.events(name) if event["kind"] == "started"]) == 1


@dataclasses.dataclass
class RayLab(Lab):
    """A laboratory whose trainings run on the cluster."""

    def train(self, name: str, plan: TrainingPlan, **fields: object) -> str:
        payload = {"plan": plan.dump(), "alerts": []}
        return self.submit("train", name, payload, num_ranks=plan.nproc_per_node, num_nodes=plan.num_nodes, **fields)

    def until(self, name: str, condition: Callable[[], T]) -> T:
        deadline = time.monotonic() + PATIENCE
        while not (value := condition()):
            status = self.launcher.status(name)
            assert not status.settled, f"{status}\n{self.launcher.logs(name)[0][-6000:]}"
            assert time.monotonic() < deadline, f"{status}\n{self.launcher.logs(name)[0][-6000:]}"
            time.sleep(0.1)
        return value

    def steps(self, name: str) -> list[int]:
        return [int(str(event["step"])) for event in self.events(name, "metric")]


@pytest.fixture(scope="module")
def ray_lab(ray_cluster: RayCluster, lab: Lab) -> RayLab:  # noqa: F811
    ray_cluster.complete()
    fields = {field.name: getattr(lab, field.name) for field in dataclasses.fields(lab)}
    return RayLab(**{**fields, "launcher": remote_launcher(ray_cluster, lab.store)})


def test_a_training_survives_a_rank_and_goes_on_with_one_machine_when_the_other_is_lost(
    ray_lab: RayLab,
    ray_cluster: RayCluster,  # noqa: F811
    dataset,  # noqa: F811
) -> None:
    changes = {"zero_stage": 1, "eval_steps": 1000, "hyperparameters": {"max_steps": STEPS}}
    plan = ray_lab.plan(dataset, ranks=1, num_nodes=2, **changes)
    name = ray_lab.train("ray-two-nodes", plan, min_nodes=1)
    ray_lab.train(name, plan, min_nodes=1)
    ray_lab.until(name, lambda: max(ray_lab.steps(name), default=0) > 10)
    began = ray_lab.events(name, "started")
    assert len(began) == 2, "one for each node"

    os.kill(rank_of(ray_cluster, name, node=1), signal.SIGKILL)
    restart = ray_lab.until(name, lambda: ray_lab.events(name, "restart"))[0]
    assert (restart["rank"], restart["restarts"]) == (1, 1)
    ray_lab.until(name, lambda: max(ray_lab.steps(name)) > 26)

    machines = [ray_cluster.node_of(rank_of(ray_cluster, name, node=node)) for node in (0, 1)]
    ray_cluster.kill_node(next(machine for machine in machines if machine is not ray_cluster.head))
    result = Checkpoint.load(ray_lab.result(name))
    assert result.step == STEPS
    status = ray_lab.launcher.status(name)
    assert (status.phase, status.attempt) == (JobPhase.SUCCEEDED, 2)
    engine = ray_cluster.engine()
    assert len([state for state in engine.list() if state.id.startswith(name)]) == 1, "of two submits one counts"
    until(lambda: [state for state in engine.list() if state.id.startswith(name) and state.settled], within=60)

    resumed = ray_lab.events(name, "resumed")
    assert [event["attempt"] for event in resumed] == [1, 2]
    assert [event["samples_skipped"] for event in resumed] == [0, 0]
    proof = ray_lab.events(name, "resume_proof")[-1]
    assert (proof["exact"], proof["samples_repeated"], proof["samples_skipped"]) == (True, 0, 0), proof
    losses: dict[int, set[float]] = {}
    for event in ray_lab.events(name, "metric"):
        losses.setdefault(int(str(event["step"])), set()).add(float(str(event["training_loss"])))
    assert sorted(losses) == list(range(1, STEPS + 1))
    assert all(max(seen) - min(seen) < 1e-4 for seen in losses.values()), "a step that ran twice came out differently"
