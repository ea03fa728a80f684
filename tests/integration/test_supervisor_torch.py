"""Real ranks: torch's process group over gloo, forked from processes that hold the real imports."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
from fixtures_launcher import job, settled, until

from deepseek_ops.adapters.local_launcher import LocalLauncher
from deepseek_ops.core.jobs import JobPhase, JobSpec

pytestmark = pytest.mark.slow  # torch, transformers and deepspeed are imported once per test


def trainer(**environment: str) -> JobSpec:
    spec = job("all_reduce", {"steps": 40}, kind="train", num_ranks=2)
    kept = {name: value for name, value in spec.environment.items() if name != "DEEPSEEK_OPS_PRELOAD"}
    return spec.evolve(environment={**kept, **environment})


def runs_of(launcher: LocalLauncher, name: str, wanted: int) -> list[dict[str, object]]:
    runs = [event for event in launcher.events(name) if event["kind"] == "run"]
    return runs if len(runs) >= wanted else []


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_a_killed_rank_of_a_process_group_is_back_without_importing_again(tmp_path: Path, warm: bool) -> None:
    launcher = LocalLauncher(tmp_path, warm=warm)
    spec = trainer() if warm else trainer(DEEPSEEK_OPS_PRELOAD="torch,torch.distributed")
    try:
        launcher.submit(spec)
        runs = until(lambda: runs_of(launcher, spec.name, 2), within=240)
        expected = ["torch", "deepspeed"] if warm else ["torch"]
        assert [(run["threads"], run["modules"]) for run in runs] == [(1, expected)] * 2
        until(lambda: (tmp_path / "jobs" / spec.name / "work" / "step").exists())
        time.sleep(0.5)
        os.kill(next(run["pid"] for run in runs if run["rank"] == 1), signal.SIGKILL)
        status = settled(launcher, spec.name, within=120)
        assert (status.phase, status.restarts) == (JobPhase.SUCCEEDED, 1), launcher.logs(spec.name)[0]
        result = launcher.result(spec.name)
        assert (result["sum"], result["restarts"]) == (2.0, 1)
        assert result["started_at"] > 0
        (restart,) = [event for event in launcher.events(spec.name) if event["kind"] == "restart"]
        assert restart["rank"] == 1, "a survivor was blamed for the loss of its peer"
        assert [run["modules"] for run in runs_of(launcher, spec.name, 4)[2:]] == [expected] * 2
        assert "cold_start" not in [event["kind"] for event in launcher.events(spec.name)]
    finally:
        launcher.shutdown("the test is over", grace_seconds=2)
