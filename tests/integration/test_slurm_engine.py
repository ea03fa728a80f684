"""What can happen to a job on a Slurm cluster beside what the engine's contract asks: on a real cluster."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from fixtures_slurm import NODES, SlurmCluster, slurm  # noqa: F401

from deepseek_ops.adapters.engines.slurm.commands import SlurmCommands
from deepseek_ops.adapters.engines.slurm.engine import SlurmEngine
from deepseek_ops.adapters.engines.slurm.errors import SlurmMissingError, SlurmRefusedError, SlurmUnavailableError
from deepseek_ops.adapters.engines.slurm.settings import SlurmSettings
from deepseek_ops.adapters.engines.slurm.submitting import submission, variables
from deepseek_ops.core.jobs import EngineJob, EnginePhase, EngineState

pytestmark = pytest.mark.slow
T = TypeVar("T")
SECRET = "mellon-4c1d"


def until(condition: Callable[[], T], *, within: float = 60.0) -> T:
    deadline = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < deadline, f"it did not happen within {within} s"
        time.sleep(0.1)
    return value


def job(name: str, code: str, **fields: object) -> EngineJob:
    command = (sys.executable, "-c", code)
    body = {"id": f"{name}.a1", "command": command, "timeout_seconds": 600, "grace_seconds": 5, **fields}
    return EngineJob.model_validate(body)


def settled(engine: SlurmEngine, name: str) -> EngineState:
    def end() -> EngineState | None:
        state = engine.state(name)
        assert state is not None, f"{name} was forgotten"
        return state if state.settled else None

    return until(end)


def forever(folder: Path) -> str:
    """Return the code of a command that says where it runs and stays."""
    return (
        "import os, pathlib, time\n"
        f"mark = pathlib.Path({str(folder)!r}, os.environ['SLURMD_NODENAME'])\n"
        "mark.with_suffix('.part').write_text(str(os.getpid()))\n"
        "mark.with_suffix('.part').rename(mark)\n"
        "time.sleep(600)\n"
    )


def test_a_node_whose_daemon_dies_is_named_and_its_job_does_not_come_back_by_itself(slurm, tmp_path) -> None:  # noqa: F811
    engine = slurm.engine()
    work = job("orphaned", forever(tmp_path), num_nodes=2)
    engine.start(work)
    marks = [tmp_path / node for node in NODES]
    until(lambda: all(mark.exists() for mark in marks))
    orphan = Path("/proc", marks[1].read_text())

    slurm.kill_daemon(NODES[1])
    assert orphan.exists(), "processes outlive the daemon: the reason why attempts are fenced in the store"
    state = settled(engine, work.id)
    assert state.phase is EnginePhase.PREEMPTED
    assert "NODE_FAIL" in state.reason
    assert f"{NODES[1]} down" in state.reason
    assert "Not responding" in state.reason

    slurm.start_node(NODES[1])
    until(lambda: slurm.node_states() == ["idle", "idle"])
    until(lambda: not orphan.exists())
    assert engine.state(work.id).phase is EnginePhase.PREEMPTED
    assert "Requeue=0 Restarts=0" in slurm.command("scontrol", "show", "job", state.handle)


def test_a_job_whose_submitter_died_between_two_commands_steps_aside(slurm, tmp_path) -> None:  # noqa: F811
    engine = slurm.engine()
    work = job("twice", forever(tmp_path))
    first = engine.start(work)
    until(lambda: (tmp_path / NODES[0]).exists())
    settings = SlurmSettings(bin_folder=str(slurm.bin))
    output = tmp_path / "second.out"
    arguments = submission(work, settings, name=f"deepseek-ops.{work.id}", output=str(output))
    number = SlurmCommands(settings).slurm("sbatch", *arguments, given=variables(work, settings, {})).strip()
    until(lambda: "FAILED" in slurm.command("squeue", "--noheader", "--states=all", f"--jobs={number}", "--format=%T"))
    assert f"another job of this name was first ({first.handle})" in output.read_text()
    assert engine.state(work.id).handle == first.handle
    assert engine.state(work.id).phase is EnginePhase.RUNNING
    engine.cancel(work.id, grace_seconds=0)
    assert settled(engine, work.id).phase is EnginePhase.CANCELLED


def test_a_job_that_waits_says_why_and_goes_at_once(slurm) -> None:  # noqa: F811
    engine = slurm.engine(sbatch_options=("--begin=now+3600",))
    work = job("waits", "print('never')")
    engine.start(work)
    state = until(lambda: (s := engine.state(work.id)) and s.reason == "PENDING: BeginTime" and s)
    assert state.phase is EnginePhase.PENDING
    engine.cancel(work.id, grace_seconds=600)
    assert engine.state(work.id).phase is EnginePhase.CANCELLED
    assert engine.tail(work.id) == ""


def test_secrets_are_on_disk_only_where_the_controller_keeps_its_state(slurm, tmp_path) -> None:  # noqa: F811
    engine = slurm.engine()
    work = job("secretive", forever(tmp_path))
    engine.start(work, secrets={"TOKEN": SECRET})
    until(lambda: (tmp_path / NODES[0]).exists())
    holders = {path for path in slurm.root.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()}
    engine.cancel(work.id, grace_seconds=0)
    assert {path.relative_to(slurm.root).parts[0] for path in holders} == {"state"}
    assert {path.stat().st_mode & 0o077 for path in holders} == {0}


def test_a_job_that_the_controller_has_forgotten_is_found_in_the_history(slurm) -> None:  # noqa: F811
    engine = slurm.engine()
    good, bad = job("remembered", "print(1)"), job("broken", "raise SystemExit(3)")
    for work in (good, bad):
        engine.start(work)
        settled(engine, work.id)
    slurm.stop_controller()
    with pytest.raises(SlurmUnavailableError, match="squeue"):
        engine.state(good.id)
    slurm.start_controller(forget=True)
    assert engine.list() == []
    assert (engine.state(good.id).phase, engine.state(good.id).exit_status) == (EnginePhase.ENDED, 0)
    assert (engine.start(bad).phase, engine.state(bad.id).exit_status) == (EnginePhase.ENDED, 3)
    assert slurm.engine(history_days=0).state(good.id) is None


def test_what_slurm_does_not_take_is_said_with_its_words(slurm, tmp_path) -> None:  # noqa: F811
    work = job("refused", "print(1)")
    with pytest.raises(SlurmRefusedError, match="invalid partition specified: nowhere"):
        slurm.engine(partition="nowhere").start(work)
    with pytest.raises(SlurmRefusedError, match="generic resource"):
        slurm.engine(gpu_type="h100").start(work.evolve(gpus_per_node=8))
    with pytest.raises(SlurmMissingError, match="via"):
        slurm.engine(bin_folder=str(tmp_path)).start(work)
    assert slurm.engine().state(work.id) is None


def test_a_login_node_that_does_not_answer_is_no_verdict_on_the_job(slurm) -> None:  # noqa: F811
    away = slurm.engine(via=("sh", "-c", "echo ssh: connect to host login1 port 22: No route to host >&2; exit 255"))
    with pytest.raises(SlurmUnavailableError, match="No route to host"):
        away.state("any.a1")
    slow = slurm.engine(via=("sh", "-c", "sleep 30"), timeout_seconds=0.3)
    with pytest.raises(SlurmUnavailableError, match=r"no answer within 0\.3 s"):
        slow.list()


def test_variables_of_a_job_around_us_do_not_change_ours(slurm, monkeypatch) -> None:  # noqa: F811
    monkeypatch.setenv("SBATCH_PARTITION", "nowhere")
    monkeypatch.setenv("SQUEUE_FORMAT", "%i")
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", SECRET)
    engine = slurm.engine()
    work = job("clean", "import os; print(sorted(os.environ), os.environ['HOME'], os.environ['USER'])")
    engine.start(work)
    assert settled(engine, work.id).exit_status == 0, engine.tail(work.id)
    assert "AIRFLOW" not in engine.tail(work.id)
    assert f"{Path.home()} " in engine.tail(work.id)
    assert os.environ.get("PATH", "") not in engine.tail(work.id)
