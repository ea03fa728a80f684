"""Slurm keeps the promises of an engine, on a real cluster of two nodes."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from contract_engine import EngineContract
from fixtures_slurm import SlurmCluster, slurm  # noqa: F401
from test_launcher import LauncherContract

from deepseek_ops.adapters.engines.slurm.engine import SlurmEngine
from deepseek_ops.adapters.remote_launcher import NodeShape, RemoteLauncher
from deepseek_ops.adapters.stores import store_environment
from deepseek_ops.adapters.stores.local import LocalStore

pytestmark = pytest.mark.slow


class TestSlurmEngine(EngineContract):
    node_variable = "SLURM_NODEID"
    forgets = False
    patience = 60.0

    @pytest.fixture(scope="class")
    def cluster(self, request: pytest.FixtureRequest, slurm: SlurmCluster) -> SlurmCluster:  # noqa: F811
        request.cls.slurm = slurm
        return slurm

    @pytest.fixture(scope="class")
    def engine(self, cluster: SlurmCluster) -> SlurmEngine:
        return cluster.engine()

    @pytest.fixture(scope="class")
    def another(self, cluster: SlurmCluster) -> SlurmEngine:
        """Reaches the commands as over ssh: by one line for a shell."""
        return cluster.engine(via=("sh", "-c"))

    def descriptions(self, engine: SlurmEngine, name: str) -> list[str]:
        number = engine.state(name).handle
        shown = [("scontrol", "show", "job", "--details", number), ("squeue", "--states=all", "--Format=ALL"),
                 ("scontrol", "write", "batch_script", number, "-"), ("sacct", "--completion", "--long")]  # fmt: skip
        return [*super().descriptions(engine, name), *(self.slurm.command(*each, check=False) for each in shown)]


class TestJobsOnSlurm:
    """What of the launcher's contract passes through the engine; the rest is the store's, whatever the engine."""

    @pytest.fixture(scope="class")
    def launcher(self, slurm: SlurmCluster, tmp_path_factory: pytest.TempPathFactory) -> RemoteLauncher:  # noqa: F811
        return remote_launcher(slurm, tmp_path_factory.mktemp("remote"))

    test_a_job_returns_its_result = LauncherContract.test_a_job_returns_its_result
    test_secrets_reach_the_job = LauncherContract.test_secrets_reach_the_job
    test_a_lost_job_is_started_again_with_a_higher_attempt_and_finds_its_work = (
        LauncherContract.test_a_lost_job_is_started_again_with_a_higher_attempt_and_finds_its_work
    )
    test_a_stop_reaches_the_code_with_its_reason_and_leaves_it_time_to_save = (
        LauncherContract.test_a_stop_reaches_the_code_with_its_reason_and_leaves_it_time_to_save
    )


def remote_launcher(cluster: SlurmCluster, root: Path) -> RemoteLauncher:
    """Return a launcher on the cluster with a store below ``root``."""
    store = LocalStore(root / "store")
    engine = cluster.engine(environment={"DEEPSEEK_OPS_SCRATCH": str(root / "scratch")})
    return RemoteLauncher(
        store, engine, shape=NodeShape(python=sys.executable), access=store_environment(store.uri, {})
    )
