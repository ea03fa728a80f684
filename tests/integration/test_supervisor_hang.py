"""Ranks that get no further are seen, put on record and started again; slow ones are named; nobody else is touched."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures_launcher import get_stuck, job, settled

from deepseek_ops.adapters.local_launcher import LocalLauncher
from deepseek_ops.core.jobs import JobPhase
from deepseek_ops.jobs import stacks


@pytest.fixture(scope="module")
def launcher(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalLauncher]:
    launcher = LocalLauncher(tmp_path_factory.mktemp("hang"))
    yield launcher
    launcher.shutdown("the tests are over", grace_seconds=1)


def events_of(launcher: LocalLauncher, name: str, kind: str) -> list[dict[str, object]]:
    return [event for event in launcher.events(name) if event["kind"] == kind]


@pytest.mark.parametrize("how", ["asleep", "deaf"])
def test_a_rank_that_gets_stuck_is_found_with_its_stack_and_the_training_goes_on(launcher, how) -> None:
    order = {"steps": 60, "stuck_rank": 1, "stuck_at": 30, "how": how}
    spec = job("march", order, kind="train", num_ranks=2, hang_seconds=3.0)
    launcher.submit(spec)
    status = settled(launcher, spec.name)
    assert (status.phase, status.restarts) == (JobPhase.SUCCEEDED, 1), (status, launcher.logs(spec.name)[0])
    assert launcher.result(spec.name) == {"rank": 0, "started_at": 31, "restarts": 1}
    (hang,) = events_of(launcher, spec.name, "hang")
    assert hang["limit_seconds"] == 3.0
    assert 3.0 <= hang["silent_seconds"] < 20
    assert hang["positions"] == {"0": {"step": 30, "phase": "step"}, "1": {"step": 30, "phase": "step"}}
    dumps = {event["rank"]: event for event in events_of(launcher, spec.name, "stacks")}
    assert set(dumps) == {0, 1}
    assert any(frame.startswith("wait_for_peers (") for frame in dumps[0]["frames"][:5]), dumps[0]  # it looks at files
    assert dumps[1]["frames"][0].startswith("get_stuck (")
    assert dumps[1]["source"] == "py-spy"
    dump = Path(status.log).parent / dumps[1]["file"]
    assert "get_stuck" in dump.read_text()
    (restart,) = events_of(launcher, spec.name, "restart")
    assert restart["hang"] is True
    assert "hung after step 30 (step): no progress for" in restart["reason"]


def test_a_process_that_nobody_may_look_into_dumps_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "spy_program", lambda: None)
    slot = stacks.StackSlot()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        slot.arm(os.getppid())
        os.write(writing, b"1")
        get_stuck("asleep")
    os.read(reading, 1)
    time.sleep(0.5)  # from there into get_stuck
    try:
        found = stacks.dump_stacks({3: (child, slot)})[3]
        assert found.source == "faulthandler"
        assert found.frames[0].startswith("get_stuck ("), found
        assert found.frames[0].endswith(")")
        assert "most recent call first" in found.text
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        slot.close()
        os.close(reading)
        os.close(writing)


def test_a_training_that_hangs_every_time_is_lost_and_says_so(launcher: LocalLauncher) -> None:
    order = {"steps": 50, "stuck_rank": 0, "stuck_at": 10}
    spec = job("march", order, kind="train", num_ranks=2, hang_seconds=1, max_restarts=0)
    launcher.submit(spec)
    status = settled(launcher, spec.name)
    assert status.phase is JobPhase.LOST
    assert "hung after step 10" in status.reason
    assert "restarted 0 times, max_restarts=0" in status.reason


def test_a_long_checkpoint_and_a_trainer_that_says_nothing_are_no_hangs(launcher: LocalLauncher) -> None:
    resting = job("march", {"steps": 20, "rest_at": 10, "rest_seconds": 3}, kind="train", num_ranks=2, hang_seconds=1)
    silent = job("count", {"steps": 150}, kind="train", num_ranks=2, hang_seconds=1)
    for spec in (resting, silent):
        launcher.submit(spec)
    for spec in (resting, silent):
        status = settled(launcher, spec.name)
        assert (status.phase, status.restarts) == (JobPhase.SUCCEEDED, 0), status


def test_a_slow_rank_is_named_with_what_speaks_for_it(launcher: LocalLauncher) -> None:
    spec = job("march", {"steps": 90, "slow_rank": 2}, kind="train", num_ranks=3)
    launcher.submit(spec)
    assert settled(launcher, spec.name).phase is JobPhase.SUCCEEDED
    reports = events_of(launcher, spec.name, "stragglers")
    assert reports, "nobody was named"
    (slow,) = reports[0]["ranks"]
    assert (slow["rank"], slow["node"]) == (2, 0)
    assert slow["ratio"] > 1.3
    assert slow["busy_seconds"] > 0.03 > slow["others_seconds"]
