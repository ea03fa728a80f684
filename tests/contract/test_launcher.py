"""What every launcher promises, held against each of them. Jobs really run; only their work is made up."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fixtures_launcher import job, settled, until

from deepseek_ops.adapters.local_launcher import LocalLauncher, UnknownJobError
from deepseek_ops.adapters.local_launcher.errors import BudgetSpentError, OneMachineError
from deepseek_ops.core.errors import JobFailedError, JobLostError, JobStoppedError, PermanentError
from deepseek_ops.core.jobs import JobCause, JobPhase
from deepseek_ops.core.ports import Launcher


class LauncherContract:
    """Subclasses provide ``launcher``, and ``another``: a second launcher on the same place, as a retry makes it."""

    def test_a_job_returns_its_result(self, launcher: Launcher) -> None:
        spec = job("echo", {"x": [1, None, "ü"]}, environment={"TEST_VARIABLE": "seen"})
        launcher.submit(spec)
        status = settled(launcher, spec.name)
        assert (status.phase, status.exit_status, status.attempt) == (JobPhase.SUCCEEDED, 0, 1), status
        result = launcher.result(spec.name)
        assert result["payload"] == {"x": [1, None, "ü"]}
        assert result["variable"] == "seen"

    def test_submitting_twice_finds_the_running_job_and_then_the_finished_one(self, launcher, another) -> None:
        spec = job("wait")
        first = launcher.submit(spec)
        again = another.submit(spec)
        assert (again.phase, again.pid, again.attempt) == (JobPhase.RUNNING, first.pid, 1)
        another.stop(spec.name, "enough")
        settled(launcher, spec.name)
        done = job("echo")
        launcher.submit(done)
        settled(launcher, done.name)
        assert another.submit(done).phase is JobPhase.SUCCEEDED
        assert len([event for event in launcher.events(done.name) if event["kind"] == "started"]) == 1

    def test_of_many_concurrent_submits_one_starts_the_job(self, launcher, another) -> None:
        spec = job("wait")
        with ThreadPoolExecutor(6) as pool:
            pids = {status.pid for status in pool.map(lambda n: (launcher, another)[n % 2].submit(spec), range(6))}
        assert len(pids) == 1
        until(lambda: launcher.status(spec.name).step)
        launcher.stop(spec.name, "enough")
        assert settled(launcher, spec.name).attempt == 1
        assert len([event for event in launcher.events(spec.name) if event["kind"] == "started"]) == 1

    def test_an_exception_of_the_code_fails_the_job_and_is_its_reason(self, launcher: Launcher) -> None:
        spec = job("fail", {"raise": "value"})
        launcher.submit(spec)
        status = settled(launcher, spec.name)
        assert (status.phase, status.exit_status) == (JobPhase.FAILED, 78)
        assert status.reason == "ValueError: the learning rate is a fish"
        with pytest.raises(JobFailedError, match="the learning rate is a fish"):
            launcher.result(spec.name)
        assert 'raise errors[str(context.payload["raise"])]' in launcher.logs(spec.name)[0], "no traceback in the log"
        ended = [event for event in launcher.events(spec.name) if event["kind"] == "ended"]
        assert [(event["reason"], event["error"]) for event in ended] == [(status.reason, "ValueError")]

    @pytest.mark.parametrize(
        ("raised", "phase", "exit_status"),
        [("permanent", JobPhase.FAILED, 78), ("transient", JobPhase.LOST, 75), ("memory", JobPhase.LOST, 75)],
    )
    def test_the_class_of_an_error_says_whether_another_try_can_help(self, launcher, raised, phase, exit_status):
        spec = job("fail", {"raise": raised})
        launcher.submit(spec)
        status = settled(launcher, spec.name)
        assert (status.phase, status.exit_status) == (phase, exit_status)
        assert "the learning rate is a fish" in status.reason
        with pytest.raises(JobLostError if phase is JobPhase.LOST else JobFailedError):
            launcher.result(spec.name)

    @pytest.mark.parametrize(("code", "phase"), [(0, JobPhase.FAILED), (1, JobPhase.FAILED), (75, JobPhase.LOST)])
    def test_a_job_that_ends_without_a_word_is_judged_by_its_exit_status(self, launcher, code, phase) -> None:
        spec = job("silent", {"status": code})
        launcher.submit(spec)
        assert settled(launcher, spec.name).phase is phase

    def test_a_lost_job_is_started_again_with_a_higher_attempt_and_finds_its_work(self, launcher) -> None:
        spec = job("second_time_lucky")
        launcher.submit(spec)
        lost = settled(launcher, spec.name)
        assert (lost.phase, lost.attempt) == (JobPhase.LOST, 1)
        assert launcher.submit(spec).attempt == 2
        status = settled(launcher, spec.name)
        assert (status.phase, status.attempt) == (JobPhase.SUCCEEDED, 2), status
        assert launcher.result(spec.name) == {"attempt": 2, "found": "left by 1"}
        assert status.device_seconds > status.wall_seconds, "the first attempt's time is part of the price"

    def test_a_stop_reaches_the_code_with_its_reason_and_leaves_it_time_to_save(self, launcher) -> None:
        spec = job("wait")
        launcher.submit(spec)
        until(lambda: launcher.status(spec.name).step)
        launcher.stop(spec.name, "budget spent")
        status = settled(launcher, spec.name)
        assert status.phase is JobPhase.STOPPED
        assert "budget spent" in status.reason
        saved = [event for event in launcher.events(spec.name) if event["kind"] == "saved"]
        assert [event["reason"] for event in saved] == ["budget spent"]
        with pytest.raises(JobStoppedError, match="budget spent"):
            launcher.result(spec.name)

    def test_attempts_share_a_budget(self, launcher: Launcher) -> None:
        spec = job("wait", grace_seconds=1)
        launcher.submit(spec)
        until(lambda: launcher.status(spec.name).step)
        launcher.stop(spec.name, "for now")
        spent = settled(launcher, spec.name).device_seconds
        limited = spec.evolve(budget_seconds=spent + 1.5)
        launcher.submit(limited)
        second = settled(launcher, spec.name)
        assert (second.phase, second.cause) == (JobPhase.FAILED, JobCause.TIMED_OUT)
        assert "timeout_seconds=1.5, budget_seconds=" in second.reason
        with pytest.raises(BudgetSpentError, match=r"raise training\.budget"):
            launcher.submit(limited)
        assert launcher.status(spec.name) == second

    def test_a_stop_after_the_end_changes_nothing(self, launcher: Launcher) -> None:
        spec = job("echo")
        launcher.submit(spec)
        before = settled(launcher, spec.name)
        launcher.stop(spec.name, "too late")
        assert launcher.status(spec.name) == before

    def test_requests_reach_the_running_job_in_order_and_once_each(self, launcher, another) -> None:
        spec = job("obey")
        launcher.submit(spec)
        assert launcher.ask(spec.name, "checkpoint", by="ada") == 1
        assert another.ask(spec.name, "checkpoint", by="grace") == 2
        assert launcher.ask(spec.name, "rewind", step=40, by="ada") == 3
        assert settled(launcher, spec.name).phase is JobPhase.SUCCEEDED
        assert launcher.result(spec.name) == {
            "done": [
                {"number": 1, "verb": "checkpoint", "step": None, "by": "ada"},
                {"number": 2, "verb": "checkpoint", "step": None, "by": "grace"},
                {"number": 3, "verb": "rewind", "step": 40, "by": "ada"},
            ]
        }

    def test_people_who_ask_at_once_get_numbers_of_their_own(self, launcher, another) -> None:
        spec = job("obey")
        launcher.submit(spec)
        with ThreadPoolExecutor(4) as pool:
            asked = list(pool.map(lambda n: (launcher, another)[n % 2].ask(spec.name, "checkpoint"), range(8)))
        assert sorted(asked) == list(range(1, 9))
        launcher.ask(spec.name, "rewind")
        assert settled(launcher, spec.name).phase is JobPhase.SUCCEEDED
        assert [done["number"] for done in launcher.result(spec.name)["done"]] == list(range(1, 10))

    def test_nobody_is_asked_when_nobody_would_obey(self, launcher: Launcher) -> None:
        spec = job("echo")
        launcher.submit(spec)
        settled(launcher, spec.name)
        with pytest.raises(PermanentError, match=f"{spec.name} has ended"):
            launcher.ask(spec.name, "checkpoint")
        with pytest.raises(UnknownJobError, match="nobody"):
            launcher.ask("nobody", "checkpoint")

    def test_a_job_that_returns_without_having_seen_the_stop_has_succeeded(self, launcher) -> None:
        spec = job("deaf")
        launcher.submit(spec)
        until(lambda: launcher.status(spec.name).step)
        launcher.stop(spec.name, "too late")
        assert settled(launcher, spec.name).phase is JobPhase.SUCCEEDED

    def test_a_stubborn_job_is_killed_when_its_grace_is_over(self, launcher: Launcher) -> None:
        spec = job("stubborn", grace_seconds=0.5)
        launcher.submit(spec)
        until(lambda: [event for event in launcher.events(spec.name) if event["kind"] == "ready"])
        launcher.stop(spec.name, "enough")
        status = settled(launcher, spec.name)
        assert status.phase is JobPhase.STOPPED
        assert "killed after grace_seconds=0.5" in status.reason

    def test_a_job_that_runs_too_long_is_stopped_and_has_failed(self, launcher: Launcher) -> None:
        spec = job("wait", timeout_seconds=1)
        launcher.submit(spec)
        status = settled(launcher, spec.name)
        assert status.phase is JobPhase.FAILED
        assert "timeout_seconds=1" in status.reason

    def test_a_job_whose_lease_is_not_renewed_stops_itself(self, launcher: Launcher) -> None:
        spec = job("wait", lease_seconds=2)
        launcher.submit(spec)
        began = time.monotonic()
        while time.monotonic() - began < 4:
            launcher.renew(spec.name)
            assert launcher.status(spec.name).phase is JobPhase.RUNNING, launcher.status(spec.name)
            time.sleep(0.3)
        status = settled(launcher, spec.name)
        assert status.phase is JobPhase.STOPPED
        assert "lease expired" in status.reason

    def test_secrets_reach_the_job(self, launcher: Launcher) -> None:
        spec = job("echo")
        launcher.submit(spec, secrets={"TEST_TOKEN": "s3same-open"})
        settled(launcher, spec.name)
        assert launcher.result(spec.name)["secret_length"] == len("s3same-open")

    def test_the_log_is_read_piece_by_piece_without_loss(self, launcher: Launcher) -> None:
        spec = job("chatty")
        launcher.submit(spec)
        pieces, offset = [], 0
        while True:
            done = launcher.status(spec.name).settled
            piece, offset = launcher.logs(spec.name, offset)
            pieces.append(piece)
            if done and not piece:
                break
        assert [line for line in "".join(pieces).splitlines() if line.startswith("zeile")] == [
            f"zeile {number} äöü€" for number in range(500)
        ]

    def test_events_are_whole_ordered_and_read_from_where_one_left_off(self, launcher: Launcher) -> None:
        spec = job("chatty")
        launcher.submit(spec)
        settled(launcher, spec.name)
        events = launcher.events(spec.name)
        steps = [event for event in events if event["kind"] == "metric"]
        assert [event["step"] for event in steps] == list(range(20))
        assert {event["loss"] for event in steps} == {"NaN"}, "JSON has no NaN"
        assert launcher.events(spec.name, len(events) - 3) == events[-3:]
        assert launcher.events(spec.name, len(events)) == []
        assert launcher.status(spec.name).step == 19

    def test_a_job_nobody_submitted_is_unknown(self, launcher: Launcher) -> None:
        assert launcher.status("nobody") is None
        assert launcher.events("nobody") == []
        assert launcher.page("nobody") == ""
        with pytest.raises(UnknownJobError, match="nobody"):
            launcher.result("nobody")
        with pytest.raises(UnknownJobError, match="nobody"):
            launcher.stop("nobody", "why not")

    def test_every_job_is_listed(self, launcher: Launcher) -> None:
        names = {launcher.submit(job("echo")).name for _ in range(2)}
        assert names <= {status.name for status in launcher.list()}

    def test_the_ranks_of_a_train_job_know_each_other_and_rank_0_answers(self, launcher: Launcher) -> None:
        spec = job("count", {"steps": 3}, kind="train", num_ranks=2)
        launcher.submit(spec)
        assert settled(launcher, spec.name).phase is JobPhase.SUCCEEDED
        assert launcher.result(spec.name) == {"rank": 0, "started_at": 0, "restarts": 0, "world": "2"}
        assert {event["rank"] for event in launcher.events(spec.name) if event["kind"] == "run"} == {0, 1}

    @pytest.mark.parametrize("victims", [[1], [0, 1]], ids=["one rank", "all ranks"])
    def test_killed_ranks_are_started_again_and_resume(self, launcher, victims) -> None:
        spec = job("count", {"steps": 150}, kind="train", num_ranks=2)
        launcher.submit(spec)
        runs = until(lambda: self._runs(launcher, spec.name, 2))
        time.sleep(0.3)
        for rank in victims:
            os.kill(next(run["pid"] for run in runs if run["rank"] == rank), signal.SIGKILL)
        status = settled(launcher, spec.name)
        assert (status.phase, status.restarts, status.attempt) == (JobPhase.SUCCEEDED, 1, 1), status
        result = launcher.result(spec.name)
        assert result["restarts"] == 1
        assert result["started_at"] > 0, "it began anew instead of resuming"
        restart = next(event for event in launcher.events(spec.name) if event["kind"] == "restart")
        assert restart["rank"] in victims
        assert "SIGKILL" in restart["reason"]

    def test_ranks_that_keep_dying_lose_the_job(self, launcher: Launcher) -> None:
        spec = job("count", {"steps": 2, "die_rank": 1}, kind="train", num_ranks=2, max_restarts=1)
        launcher.submit(spec)
        status = settled(launcher, spec.name)
        assert (status.phase, status.restarts) == (JobPhase.LOST, 1)
        assert "rank 1 was killed by SIGKILL" in status.reason

    def test_a_rank_that_fails_by_itself_ends_the_job_at_once(self, launcher: Launcher) -> None:
        spec = job("count", {"steps": 2, "fail_rank": 1}, kind="train", num_ranks=2)
        launcher.submit(spec)
        status = settled(launcher, spec.name)
        assert (status.phase, status.restarts) == (JobPhase.FAILED, 0)
        assert status.reason == "ValueError: this rank cannot"

    def test_a_stop_reaches_every_rank(self, launcher: Launcher) -> None:
        spec = job("count", {"steps": 100_000}, kind="train", num_ranks=2)
        launcher.submit(spec)
        until(lambda: self._runs(launcher, spec.name, 2))
        launcher.stop(spec.name, "enough")
        assert settled(launcher, spec.name).phase is JobPhase.STOPPED
        assert {event["rank"] for event in launcher.events(spec.name) if event["kind"] == "stopped"} == {0, 1}

    @staticmethod
    def _runs(launcher: Launcher, name: str, wanted: int) -> list[dict[str, object]]:
        runs = [event for event in launcher.events(name) if event["kind"] == "run"]
        return runs if len(runs) >= wanted else []


@pytest.mark.slow  # half a minute of interpreter starts; the quick run keeps the same contract for warm starts
class TestLocalLauncher(LauncherContract):
    """Every job from a new interpreter."""

    @pytest.fixture(scope="class")
    def root(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("cold")

    @pytest.fixture(scope="class")
    def launcher(self, root: Path) -> Iterator[LocalLauncher]:
        launcher = LocalLauncher(root, warm=False)
        yield launcher
        launcher.shutdown("the tests are over", grace_seconds=2)

    @pytest.fixture(scope="class")
    def another(self, root: Path) -> LocalLauncher:
        return LocalLauncher(root, warm=False)

    def test_a_training_of_several_machines_is_refused(self, launcher: LocalLauncher) -> None:
        spec = job("march", kind="train", num_nodes=2)
        with pytest.raises(OneMachineError, match="num_nodes=2"):
            launcher.submit(spec)
        assert launcher.status(spec.name) is None


class TestWarmLauncher(LauncherContract):
    """Every job forked from one warm host."""

    @pytest.fixture(scope="class")
    def root(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("warm")

    @pytest.fixture(scope="class")
    def launcher(self, root: Path) -> Iterator[LocalLauncher]:
        launcher = LocalLauncher(root)
        launcher.prewarm(job("echo").environment)
        yield launcher
        cold = [s.name for s in launcher.list() if any(e["kind"] == "cold_start" for e in launcher.events(s.name))]
        launcher.shutdown("the tests are over", grace_seconds=2)
        assert not cold, "these jobs did not come from the host"

    @pytest.fixture(scope="class")
    def another(self, root: Path) -> LocalLauncher:
        return LocalLauncher(root)
