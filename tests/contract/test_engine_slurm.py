"""Slurm keeps the promises of an engine, on a real cluster of two nodes."""

from __future__ import annotations

import pytest
from contract_engine import EngineContract
from fixtures_slurm import SlurmCluster, slurm  # noqa: F401

from deepseek_ops.adapters.engines.slurm.engine import SlurmEngine

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
