"""What the words of Slurm mean to us, and that nothing of ours is read as a word of a shell."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import pytest

from deepseek_ops.adapters.engines.slurm.errors import SlurmRefusedError
from deepseek_ops.adapters.engines.slurm.reading import QUEUE_FORMAT, queued, remembered
from deepseek_ops.adapters.engines.slurm.script import batch_script
from deepseek_ops.adapters.engines.slurm.settings import SlurmSettings
from deepseek_ops.adapters.engines.slurm.submitting import submission, variables
from deepseek_ops.core.errors import InvalidRecordError
from deepseek_ops.core.jobs import EngineJob, EnginePhase, JobCause

JOB = EngineJob(id="train-7.a2", command=("python", "-m", "work"), timeout_seconds=3600, grace_seconds=30)


def row(**fields: str) -> str:
    """Return a line of squeue."""
    given = {"JobID": "12", "Name": "deepseek-ops.train-7.a2", "Comment": "deepseek-ops job=train-7.a2", **fields}
    widths = dict(part.split(":") for part in QUEUE_FORMAT.split(","))
    return "".join(given.get(name, "").ljust(int(width))[: int(width)] for name, width in widths.items())


@pytest.mark.parametrize(
    ("state", "phase"),
    [
        ("PENDING", EnginePhase.PENDING),
        ("CONFIGURING", EnginePhase.PENDING),
        ("REQUEUE_HOLD", EnginePhase.PENDING),
        ("RUNNING", EnginePhase.RUNNING),
        ("COMPLETING", EnginePhase.RUNNING),
        ("SUSPENDED", EnginePhase.RUNNING),
        ("A_STATE_OF_NEXT_YEAR", EnginePhase.RUNNING),
        ("COMPLETED", EnginePhase.ENDED),
        ("FAILED", EnginePhase.ENDED),
        ("OUT_OF_MEMORY", EnginePhase.ENDED),
        ("TIMEOUT", EnginePhase.ENDED),
        ("PREEMPTED", EnginePhase.PREEMPTED),
        ("NODE_FAIL", EnginePhase.PREEMPTED),
        ("BOOT_FAIL", EnginePhase.PREEMPTED),
        ("CANCELLED", EnginePhase.CANCELLED),
    ],
)
def test_a_state_of_slurm_is_a_phase_of_ours(state: str, phase: EnginePhase) -> None:
    (job,) = queued(row(State=state))
    assert job.engine_state(limited=False).phase is phase


@pytest.mark.parametrize(
    ("state", "cause"),
    [
        ("OUT_OF_MEMORY", JobCause.OUT_OF_MEMORY),
        ("PREEMPTED", JobCause.PREEMPTED),
        ("NODE_FAIL", JobCause.MACHINE_LOST),
        ("FAILED", None),
        ("RUNNING", None),
    ],
)
def test_a_state_of_slurm_that_says_why_is_a_cause(state: str, cause: JobCause | None) -> None:
    (job,) = queued(row(State=state))
    assert job.engine_state(limited=False).cause is cause


def test_running_out_of_a_partition_s_time_is_no_failure_where_jobs_are_cut_to_it() -> None:
    (job,) = queued(row(State="TIMEOUT", Reason="TimeLimit"))
    assert job.engine_state(limited=True).phase is EnginePhase.PREEMPTED


@pytest.mark.parametrize(("raw", "status"), [("0", 0), ("19200", 75), ("9", 137), ("15", 143)])
def test_an_exit_code_is_what_a_shell_would_say(raw: str, status: int) -> None:
    (job,) = queued(row(State="FAILED", exit_code=raw))
    assert job.engine_state(limited=False).exit_status == status


def test_reasons_are_for_people() -> None:
    (failed,) = queued(row(State="FAILED", exit_code="19968", Reason="NonZeroExitCode"))
    assert failed.engine_state(limited=False).reason == "FAILED with exit status 78"
    (lost,) = queued(row(State="NODE_FAIL", Reason="NodeDown", NodeList="n[1-2]"))
    assert lost.engine_state(limited=False, about_nodes="n2 down: gone").reason == "NODE_FAIL: NodeDown (n2 down: gone)"
    (waits,) = queued(row(State="PENDING", Reason="Resources"))
    assert waits.engine_state(limited=False).reason == "PENDING: Resources"


def test_who_was_asked_to_end_was_cancelled_however_it_ended() -> None:
    (job,) = queued(row(State="COMPLETED", Comment="deepseek-ops job=train-7.a2 stop=12.5"))
    assert (job.id, job.engine_state(limited=False).phase) == ("train-7.a2", EnginePhase.CANCELLED)


def test_jobs_of_others_are_left_out_and_the_first_of_a_name_comes_first() -> None:
    lines = [row(JobID="102"), row(JobID="99"), row(JobID="7", Comment="mine"), row(JobID="8", Comment=""), ""]
    assert [job.number for job in queued("\n".join(lines))] == [99, 102]


def test_history_tells_names_states_and_codes() -> None:
    printed = (
        "5|other|COMPLETED|0:0\n7|ours.x|CANCELLED by 1000|0:15\n6|ours.x|FAILED|75:0\n6.batch|ours.x|FAILED|75:0\n"
    )
    found = remembered(printed, {"ours.x": "x"})
    assert [(job.number, job.id, job.state, job.exit_code) for job in found] == [
        (6, "x", "FAILED", 75),
        (7, "x", "CANCELLED", 143),
    ]


def test_arguments_reach_the_command_as_they_are(tmp_path: Path) -> None:
    """The script runs for real, with stand-ins for Slurm's commands that know one job."""
    for name, body in (("squeue", "echo '  41'"), ("srun", 'shift 3; printf "%s\\n" "$@"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    words = ["two words", "$HOME", "`id`", "it's", 'a "quote"', "*", "--option", "é\\n", "{x}", ""]
    script = batch_script(
        ["run", *words], name="n", output="/dev/null", grace_seconds=1, srun_options=[], bin_folder=str(tmp_path)
    )
    for number, expected in (("41", ["--", "run", *words]), ("42", None)):
        env = {"SLURM_JOB_ID": number, "SLURM_JOB_UID": "0", "SLURM_JOB_USER": "u", "PATH": "/usr/bin:/bin"}
        done = subprocess.run(["sh", "-c", script], env=env, capture_output=True, text=True, check=False, timeout=30)
        if expected is None:
            assert done.returncode == 75
            assert "another job of this name was first (41)" in done.stdout
        else:
            assert done.stdout.splitlines() == expected, done.stderr


def test_options_come_from_the_cluster_s_settings() -> None:
    settings = SlurmSettings.load(
        {"partition": "gpu", "account": "lab", "qos": "high", "constraint": "a&b", "gpu_type": "h100",
         "sbatch_options": ["--exclusive"], "srun_options": ["--mpi=none"],
         "container_options": ["--container-mounts=/data:/data"]}
    )  # fmt: skip
    job = JOB.evolve(num_nodes=2, gpus_per_node=8, cpus_per_node=6, memory_bytes=3 << 30, image="nvcr.io/x:1")
    arguments = submission(job, settings, name="n", output="out/n.out")
    assert {
        "--partition=gpu", "--account=lab", "--qos=high", "--constraint=a&b", "--gpus-per-node=h100:8", "--nodes=2-2",
        "--ntasks-per-node=1", "--cpus-per-task=6", "--mem=3072M", "--exclusive", "--no-requeue", "--time=62",
        "--signal=TERM@30", "--comment=deepseek-ops job=train-7.a2",
    } <= set(arguments)  # fmt: skip
    (wrapped,) = (line for line in arguments[-1].splitlines() if line.startswith("srun "))
    step = shlex.split(wrapped)
    assert {"--container-image=nvcr.io/x:1", "--container-mounts=/data:/data", "--mpi=none", "--label"} <= set(step)


def test_the_time_limit_is_cut_to_what_the_partition_takes() -> None:
    week = JOB.evolve(timeout_seconds=7 * 24 * 3600)
    assert "--time=1440" in submission(week, SlurmSettings(max_minutes=1440), name="n", output="o")
    assert "--time=10082" in submission(week, SlurmSettings(), name="n", output="o")


@pytest.mark.parametrize("option", ["--requeue", "--array=1-9", "--export=ALL", "-N2", "exclusive", "--x=1\n--y"])
def test_options_that_would_break_a_promise_are_refused(option: str) -> None:
    with pytest.raises(InvalidRecordError, match="sbatch_options"):
        SlurmSettings.load({"sbatch_options": [option]})


def test_variables_of_the_job_win_and_secrets_win_over_them() -> None:
    settings = SlurmSettings(environment={"A": "cluster", "B": "cluster", "C": "cluster"})
    job = JOB.evolve(environment={"B": "job", "C": "job"})
    assert variables(job, settings, {"C": "secret"}) == b"A=cluster\0B=job\0C=secret\0"
    with pytest.raises(SlurmRefusedError, match="LATE"):
        variables(job, settings, {"LATE": "a\0b"})
