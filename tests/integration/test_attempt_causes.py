"""Causes of real ends: a notice of the machine is a preemption, a kill by somebody is none of the kernel's."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures_launcher import job, settled, until

from deepseek_ops.adapters.local_launcher import LocalLauncher
from deepseek_ops.adapters.local_launcher.folder import Attempt, JobFolder
from deepseek_ops.core.jobs import JobCause, JobPhase
from deepseek_ops.jobs.supervise import JobSupervisor


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalLauncher]:
    launcher = LocalLauncher(tmp_path_factory.mktemp("causes"), warm=False)
    yield launcher
    launcher.shutdown("the tests are over", grace_seconds=2)


def surroundings(work: str, **more: str) -> dict[str, str]:
    return {"DEEPSEEK_OPS_JOB_KINDS": f"train=fixtures_causes:{work}", **more}


def test_a_spot_notice_is_a_preemption_of_all_ranks(launcher: LocalLauncher, tmp_path: Path) -> None:
    notice = tmp_path / "leave"
    told = surroundings("leaves", DEEPSEEK_OPS_SPOT_NOTICE=notice.as_uri())
    spec = job("leaves", kind="train", num_ranks=2, environment=told)
    launcher.submit(spec)
    until(lambda: launcher.status(spec.name).step)
    notice.write_text("in two minutes")
    status = settled(launcher, spec.name)
    assert (status.phase, status.cause, status.taken_away) == (JobPhase.LOST, JobCause.PREEMPTED, True)
    assert "spot notice: in two minutes" in status.reason
    ended = [event["cause"] for event in launcher.events(spec.name) if event["kind"] == "ended"]
    assert ended == ["preempted"]


def test_a_rank_that_somebody_kills_has_no_cause_and_is_started_again(launcher: LocalLauncher) -> None:
    spec = job("killed", kind="train", max_restarts=1, environment=surroundings("killed"))
    launcher.submit(spec)
    status = settled(launcher, spec.name)
    assert (status.phase, status.cause, status.restarts) == (JobPhase.LOST, None, 1)
    assert "was killed by SIGKILL; restarted 1 times" in status.reason, "the kernel counted no kill of its own"


def test_a_job_that_clings_to_its_grace_is_killed_before_the_minute_after_its_lease_is_over(tmp_path: Path) -> None:
    files = JobFolder(tmp_path)
    files.lease.touch()
    spec = job("wait", lease_seconds=4, grace_seconds=600)
    supervisor = JobSupervisor(files, spec, Attempt(attempt=1))
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as clings:
        assert clings.stdout is not None
        clings.stdout.readline()
        supervisor._worker = clings.pid
        supervisor._lease_mtime = files.lease.stat().st_mtime
        supervisor._wanted = supervisor._beat = time.monotonic() - 2.5
        supervisor._look_around()
        assert supervisor._kill_at > time.monotonic() + 500, "told, so that its grace would end long after the lease"
        assert files.stop_request(1).counts_as is JobCause.LEASE_EXPIRED
        supervisor._beat = time.monotonic()
        supervisor._look_around()
        assert clings.poll() is None, "there is time left"
        supervisor._wanted -= 58
        supervisor._look_around()
        assert clings.wait(timeout=10) == -signal.SIGKILL
