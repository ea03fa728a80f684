"""Whoever dies, whenever: one attempt of a job runs at a time, nothing outlives it, and nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures_launcher import job, settled, until

from deepseek_ops.adapters.local_launcher import (
    JobFolderError,
    JobNotSettledError,
    JobStartError,
    LocalLauncher,
    NoSpaceForJobError,
)
from deepseek_ops.adapters.local_launcher.folder import Attempt, JobFolder
from deepseek_ops.adapters.local_launcher.processes import process
from deepseek_ops.core.jobs import JobCause, JobPhase, JobSpec

SUBMIT = """
import json, sys
from pathlib import Path
from deepseek_ops.adapters.local_launcher import LocalLauncher
from deepseek_ops.core.jobs import JobSpec
LocalLauncher(Path(sys.argv[1]), warm=False).submit(JobSpec.load(json.loads(sys.argv[2])))
print("submitted", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[LocalLauncher]:
    launcher = LocalLauncher(tmp_path, warm=False)
    yield launcher
    launcher.shutdown("the test is over", grace_seconds=1)


def submitter(root: Path, spec: JobSpec) -> subprocess.Popen[str]:
    """Return a process that submits the job, in a process group of its own like an Airflow task."""
    return subprocess.Popen(
        [sys.executable, "-c", SUBMIT, str(root), json.dumps(spec.dump())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        process_group=0,
    )


def pids_of(launcher: LocalLauncher, name: str, kind: str) -> list[int]:
    return until(lambda: [pid for event in launcher.events(name) if event["kind"] == kind for pid in event["pids"]])


def living(pids: list[int]) -> list[int]:
    return [pid for pid in pids if (found := process(pid)) is not None and not found.zombie]


@pytest.mark.parametrize(("work", "said"), [("wait", "processes"), ("stubborn", "ready")])
def test_a_killed_supervisor_takes_every_process_with_it_and_the_job_is_lost(launcher, work, said) -> None:
    spec = job(work)
    supervisor = launcher.submit(spec).pid
    pids = pids_of(launcher, spec.name, said)
    assert living(pids) == pids
    os.kill(supervisor, signal.SIGKILL)
    status = settled(launcher, spec.name)
    assert status.phase is JobPhase.LOST
    assert until(lambda: not living(pids)), "the job's processes outlived it"
    assert launcher.submit(spec).attempt == 2


def test_killed_ranks_and_supervisor_leave_no_rank(launcher: LocalLauncher) -> None:
    spec = job("count", {"steps": 100_000}, kind="train", num_ranks=2)
    supervisor = launcher.submit(spec).pid
    until(lambda: len(ranks := [e for e in launcher.events(spec.name) if e["kind"] == "run"]) == 2 and ranks)
    pids = [event["pid"] for event in launcher.events(spec.name) if event["kind"] == "run"]
    os.kill(supervisor, signal.SIGKILL)
    assert until(lambda: not living(pids))
    assert launcher.status(spec.name).phase is JobPhase.LOST


@pytest.mark.parametrize(
    ("work", "said", "ended"), [("wait", "processes", "stopped"), ("stubborn", "ready", "stopped")]
)
def test_no_process_is_left_when_a_job_has_ended(launcher, work, said, ended) -> None:
    spec = job(work, grace_seconds=1)
    launcher.submit(spec)
    pids = pids_of(launcher, spec.name, said)
    launcher.stop(spec.name, "enough")
    assert settled(launcher, spec.name).phase is JobPhase.STOPPED
    assert not living(pids), "a child of the job outlived it"


def test_a_job_goes_on_when_the_task_that_submitted_it_is_killed_with_its_group(tmp_path, launcher) -> None:
    spec = job("deaf")
    task = submitter(tmp_path, spec)
    assert task.stdout.readline() == "submitted\n"
    os.killpg(task.pid, signal.SIGKILL)
    task.wait()
    assert launcher.status(spec.name).phase is JobPhase.RUNNING
    again = launcher.submit(spec)
    assert again.attempt == 1
    assert settled(launcher, spec.name).phase is JobPhase.SUCCEEDED


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.3, 0.5, 0.7, 0.9, 1.1, 1.3])
def test_a_task_killed_while_it_submits_leaves_one_running_attempt_at_most(tmp_path, launcher, delay) -> None:
    spec = job("wait")
    task = submitter(tmp_path, spec)
    time.sleep(delay)
    os.killpg(task.pid, signal.SIGKILL)
    task.wait()
    status = launcher.submit(spec)
    assert status.phase is JobPhase.RUNNING
    started = until(lambda: [e for e in launcher.events(spec.name) if e["kind"] == "started"])
    assert len(living([event["pid"] for event in started])) == 1
    assert started[-1]["pid"] == status.pid


def test_a_supervisor_that_woke_up_too_late_writes_nothing_and_ends(launcher: LocalLauncher, tmp_path: Path) -> None:
    spec = job("wait")
    old = launcher.submit(spec).pid
    pids = pids_of(launcher, spec.name, "processes")
    os.kill(old, signal.SIGSTOP)
    files = JobFolder(tmp_path / "jobs" / spec.name)
    files.write("attempt.json", Attempt(attempt=2))  # what a launcher does that takes it for dead
    os.kill(old, signal.SIGCONT)
    assert until(lambda: not living([old, *pids]), within=30)
    assert not (files.path / "status.json").exists()


def test_secrets_are_in_no_file_below_the_root_and_airflow_stays_outside(launcher, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_PROD", "postgres://u:p@db/x")
    spec = job("echo", {"x": 1})
    launcher.submit(spec, secrets={"TEST_TOKEN": "s3same-open"})
    settled(launcher, spec.name)
    result = launcher.result(spec.name)
    assert (result["secret_length"], result["airflow"]) == (len("s3same-open"), [])
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not [path for path in files if b"s3same-open" in path.read_bytes()]


def test_memory_beyond_the_limit_is_refused_and_memory_below_it_is_not(launcher: LocalLauncher) -> None:
    small = job("greedy", {"bytes": 512 << 20}, memory_bytes=256 << 20)
    enough = job("greedy", {"bytes": 128 << 20}, memory_bytes=256 << 20)
    launcher.submit(small)
    launcher.submit(enough)
    status = settled(launcher, small.name)
    assert status.phase is JobPhase.LOST
    assert f"out of memory (memory_bytes={256 << 20})" in status.reason
    assert status.cause is JobCause.OUT_OF_MEMORY
    assert settled(launcher, enough.name).phase is JobPhase.SUCCEEDED


def test_a_full_disk_is_refused_before_anything_starts(tmp_path: Path) -> None:
    launcher = LocalLauncher(tmp_path, warm=False, min_free_bytes=1 << 60)
    with pytest.raises(NoSpaceForJobError, match="bytes free and a job needs 1152921504606846976"):
        launcher.submit(job("echo"))
    assert launcher.list() == []


def test_a_disk_that_fills_up_fails_the_job_by_name_and_its_end_is_known(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("a small disk takes the right to mount one")
    try:
        launcher = LocalLauncher(small, warm=False, min_free_bytes=1 << 20)
        spec = job("fill")
        launcher.submit(spec)
        status = settled(launcher, spec.name)
        assert (status.phase, status.exit_status) == (JobPhase.FAILED, 78)
        assert "No space left on device" in status.reason
        with pytest.raises(NoSpaceForJobError):
            launcher.submit(job("echo"))
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_a_supervisor_told_to_end_by_the_machine_lets_the_job_save_and_loses_it(launcher: LocalLauncher) -> None:
    spec = job("wait")
    supervisor = launcher.submit(spec).pid
    until(lambda: launcher.status(spec.name).step)
    os.kill(supervisor, signal.SIGTERM)
    status = settled(launcher, spec.name)
    assert (status.phase, status.reason) == (JobPhase.LOST, "the supervisor got SIGTERM")
    assert status.cause is JobCause.PREEMPTED
    assert [event["reason"] for event in launcher.events(spec.name) if event["kind"] == "saved"] == [status.reason]


def test_a_stop_by_a_rule_in_the_code_is_a_stop(launcher: LocalLauncher) -> None:
    spec = job("rule")
    launcher.submit(spec)
    status = settled(launcher, spec.name)
    assert (status.phase, status.reason) == (JobPhase.STOPPED, "loss was NaN for 3 steps")


def test_programs_of_a_dead_rank_do_not_run_beside_its_successor(launcher: LocalLauncher) -> None:
    spec = job("breed", kind="train", num_ranks=2)
    launcher.submit(spec)
    assert settled(launcher, spec.name).phase is JobPhase.SUCCEEDED
    result = launcher.result(spec.name)
    assert (result["old"] > 0, result["living"]) == (True, [])


def test_a_root_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "root").write_text("")
    with pytest.raises(JobFolderError, match="Not a directory"):
        LocalLauncher(tmp_path / "root", warm=False).submit(job("echo"))


@pytest.mark.parametrize(
    ("python", "said"), [("/nowhere/python", "no such program"), ("/usr/bin/false", "exit status 1")]
)
def test_an_interpreter_that_cannot_start_jobs_is_named(launcher: LocalLauncher, python: str, said: str) -> None:
    spec = job("echo", python=python)
    with pytest.raises(JobStartError, match=said):
        launcher.submit(spec)
    assert launcher.status(spec.name).phase is JobPhase.LOST
    repaired = spec.evolve(python="")
    assert launcher.submit(repaired).attempt == 2
    assert settled(launcher, spec.name).phase is JobPhase.SUCCEEDED


def test_a_missing_function_of_a_kind_fails_the_job_by_name(launcher: LocalLauncher) -> None:
    spec = job("no_such_work")
    launcher.submit(spec)
    status = settled(launcher, spec.name)
    assert status.phase is JobPhase.FAILED
    assert "fixtures_launcher:no_such_work" in status.reason


def test_a_settled_job_is_retired_and_a_running_one_is_not(launcher: LocalLauncher, tmp_path: Path) -> None:
    spec = job("wait")
    launcher.submit(spec)
    with pytest.raises(JobNotSettledError):
        launcher.retire(spec.name)
    launcher.stop(spec.name, "enough")
    settled(launcher, spec.name)
    launcher.retire(spec.name)
    launcher.retire(spec.name)
    assert launcher.status(spec.name) is None
    assert list((tmp_path / "jobs").iterdir()) == []
    assert launcher.submit(spec).attempt == 1


def test_shutdown_leaves_nothing_running(launcher: LocalLauncher) -> None:
    polite, stubborn = job("wait"), job("stubborn")
    for spec in (polite, stubborn):
        launcher.submit(spec)
    pids = pids_of(launcher, polite.name, "processes") + pids_of(launcher, stubborn.name, "ready")
    launcher.shutdown("the demo is over", grace_seconds=2)
    assert until(lambda: not living(pids))
    assert launcher.status(polite.name).reason == "the demo is over"
    assert launcher.status(stubborn.name).settled


def test_the_log_keeps_all_attempts_apart(launcher: LocalLauncher) -> None:
    spec = job("second_time_lucky")
    for _ in range(2):
        launcher.submit(spec)
        settled(launcher, spec.name)
    log = launcher.logs(spec.name)[0]
    assert log.index("--- attempt 1 of") < log.index("--- attempt 2 of")
