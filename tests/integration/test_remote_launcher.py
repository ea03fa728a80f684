"""What may go wrong between a launcher, a store, an engine and its machines, and what comes of it. Jobs really run."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import fixtures_remote
import pytest
from fixtures_launcher import job, settled, until
from fixtures_process_engine import EngineAwayError
from fixtures_remote import Cluster, living

from deepseek_ops.adapters.launchers import LauncherSettings
from deepseek_ops.adapters.local_launcher import JobNotSettledError
from deepseek_ops.adapters.remote_launcher import NodeShape, RemoteLauncher, judging, reap
from deepseek_ops.adapters.remote_launcher import launcher as launching
from deepseek_ops.adapters.remote_launcher.asking import new_engine_id
from deepseek_ops.adapters.remote_launcher.layout import JobKeys
from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.airflow.operators.environments import submit
from deepseek_ops.core.jobs import EngineJob, EnginePhase, JobPhase
from deepseek_ops.core.ports import ObjectInfo
from deepseek_ops.core.records import GitRef, RunManifest
from deepseek_ops.pipeline.runs import RunPlan

cluster = fixtures_remote.cluster


class Killed(BaseException):
    """The process that was submitting has been killed."""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "STARTER_SECONDS", 0.3)


def killed() -> None:
    raise Killed


class TestSubmit:
    def test_a_start_that_was_cut_off_before_the_engine_heard_of_it_is_finished_by_the_next_submit(self, cluster):
        spec = job("echo")
        cluster.engine.before_start = killed
        with pytest.raises(Killed):
            cluster.launcher().submit(spec)
        status = cluster.launcher().status(spec.name)
        assert (status.phase, status.reason, cluster.engine.started) == (JobPhase.RUNNING, "is being started", [])
        assert cluster.launcher().submit(spec).attempt == 1
        assert settled(cluster.launcher(), spec.name).phase is JobPhase.SUCCEEDED
        assert cluster.engine.started == [cluster.engine_id(spec.name)]

    def test_a_start_whose_answer_was_lost_is_found_again(self, cluster: Cluster) -> None:
        spec = job("wait")
        cluster.engine.lose_answer = True
        with pytest.raises(EngineAwayError):
            cluster.launcher().submit(spec)
        assert cluster.launcher().submit(spec).attempt == 1
        assert len(cluster.engine.started) == 1
        cluster.launcher().stop(spec.name, "enough")

    def test_an_engine_that_was_asked_right_before_the_start_says_nothing_about_it(self, cluster, monkeypatch) -> None:
        spec = job("wait")
        cluster.engine.before_start = killed
        with pytest.raises(Killed):
            cluster.launcher().submit(spec)
        cluster.engine.hold = True
        state, asked = cluster.engine.state, []

        def late(name: str) -> object:
            asked.append(known := state(name))
            if len(asked) == 1:
                cluster.launcher().submit(spec)
                cluster.store.create(JobKeys(spec.name).of(1, "claim.json"), b'{"instance": "first"}')
            return known

        monkeypatch.setattr(cluster.engine, "state", late)
        monkeypatch.setattr(judging, "SETTLE_SECONDS", 0.0)
        assert cluster.launcher().status(spec.name).phase is JobPhase.RUNNING
        assert asked[0] is None
        assert cluster.launcher().submit(spec).attempt == 1
        cluster.launcher().stop(spec.name, "enough")

    def test_nobody_starts_it_for_a_quarter_of_an_hour_and_it_is_lost(self, cluster, monkeypatch) -> None:
        spec = job("echo")
        cluster.engine.before_start = killed
        with pytest.raises(Killed):
            cluster.launcher().submit(spec)
        monkeypatch.setattr(judging, "START_SECONDS", 0.0)
        status = cluster.launcher().status(spec.name)
        assert (status.phase, status.reason) == (JobPhase.LOST, "nobody started it")
        assert cluster.launcher().submit(spec).attempt == 2

    def test_what_an_engine_refuses_for_good_has_failed(self, cluster: Cluster) -> None:
        spec = job("echo")
        cluster.engine.before_start = lambda: (_ for _ in ()).throw(JobNotSettledError("x"))
        with pytest.raises(JobNotSettledError):
            cluster.launcher().submit(spec)
        assert cluster.launcher().status(spec.name).phase is JobPhase.RUNNING, "a transient error settles nothing"
        cluster.engine.before_start = lambda: (_ for _ in ()).throw(launching.UnknownJobError("x", "no such partition"))
        with pytest.raises(launching.UnknownJobError):
            cluster.launcher().submit(spec)
        status = cluster.launcher().status(spec.name)
        assert status.phase is JobPhase.FAILED
        assert "no such partition" in status.reason

    def test_an_agent_that_cannot_begin_fails_the_job_with_its_last_words(self, cluster: Cluster) -> None:
        spec = job("echo", environment={"DEEPSEEK_OPS_NODE_COUNT": "1"})
        cluster.launcher().submit(spec, secrets={"DEEPSEEK_OPS_STORE": "ftp://nowhere"})
        status = settled(cluster.launcher(), spec.name)
        assert status.phase is JobPhase.FAILED
        assert "store URI 'ftp://nowhere'" in status.reason

    def test_secrets_are_in_no_object_and_no_argument(self, cluster: Cluster) -> None:
        spec = job("echo")
        cluster.launcher().submit(spec, secrets={"TEST_TOKEN": "s3same-open-very"})
        settled(cluster.launcher(), spec.name)
        assert cluster.launcher().result(spec.name)["secret_length"] == len("s3same-open-very")
        assert not [text for text in cluster.texts() if b"s3same-open-very" in text]
        assert "s3same-open-very" not in str(cluster.engine.runs[cluster.engine_id(spec.name)].job.dump())

    def test_a_runs_job_takes_the_key_of_its_environment_to_the_image_of_its_machines(self, cluster: Cluster) -> None:
        cluster.engine.hold = True
        source = GitRef(repository="https://host/m.git", name="refs/heads/main", commit="1" * 40)
        manifest = RunManifest(
            name="tiny", source=source, tree="2" * 40, config_digest="3" * 64, environment="ab" * 16, software="1"
        )
        shape = NodeShape(image="host/trainer:{environment}")
        operator = SimpleNamespace(
            run=RunPlan(manifest=manifest, code="4" * 64).dump(),
            launcher=RemoteLauncher(cluster.store, cluster.engine, shape=shape, access={}),
            launcher_hook=SimpleNamespace(settings=lambda: LauncherSettings(engine="kubernetes")),
            store_hook=SimpleNamespace(environment=dict),
        )
        spec = job("echo")
        submit(operator, spec, stopped=lambda: False)
        assert cluster.engine.runs[cluster.engine_id(spec.name)].job.image == "host/trainer:abababababab"

    def test_the_page_is_the_newest_attempts_in_the_engines_own_interface(self, cluster: Cluster) -> None:
        spec, launcher = job("echo"), cluster.launcher()
        assert launcher.page(spec.name) == "", "nobody has heard of it"
        cluster.engine.hold = True
        cluster.engine.before_start = killed
        with pytest.raises(Killed):
            launcher.submit(spec)
        assert cluster.launcher().page(spec.name) == "", "the engine has not begun with it"
        launcher.submit(spec)
        assert cluster.launcher().page(spec.name) == f"http://engine.example/{cluster.engine_id(spec.name)}"
        launcher.stop(spec.name, "not needed")
        assert launcher.submit(spec).attempt == 2
        assert launcher.page(spec.name) == f"http://engine.example/{cluster.engine_id(spec.name, 2)}"
        launcher.stop(spec.name, "not needed")
        assert launcher.page(spec.name), "a job that has ended can be looked at still"
        launcher.retire(spec.name)
        assert launcher.page(spec.name) == ""


class TestMachines:
    def test_a_killed_agent_takes_everything_with_it_and_the_job_is_lost_and_resumed(self, cluster: Cluster) -> None:
        spec = job("second_time_lucky", {"x": 1})
        waiting = job("wait")
        cluster.launcher().submit(waiting)
        pids = cluster.pids(waiting.name)
        cluster.engine.kill(cluster.engine_id(waiting.name), 0)
        status = settled(cluster.launcher(), waiting.name)
        assert status.phase is JobPhase.LOST
        assert "ended without a word (exit status -9)" in status.reason
        until(lambda: not living(pids[:1]), within=10)  # the code; what it started is the engine's to clean up
        cluster.launcher().submit(spec)
        assert settled(cluster.launcher(), spec.name).phase is JobPhase.LOST
        cluster.launcher().submit(spec)
        assert settled(cluster.launcher(), spec.name).attempt == 2
        _kill(pids)

    def test_an_engine_that_starts_a_job_again_by_itself_finds_it_taken(self, cluster: Cluster) -> None:
        spec = job("wait")
        cluster.launcher().submit(spec)
        pids = cluster.pids(spec.name)
        engine_id = cluster.engine_id(spec.name)
        cluster.engine.kill(engine_id, 0)
        until(lambda: cluster.engine.state(engine_id).settled)
        cluster.engine.again(engine_id)
        status = settled(cluster.launcher(), spec.name)
        assert (status.phase, status.exit_status) == (JobPhase.LOST, 78)
        assert "is not run here" in status.reason
        assert len(cluster.events(spec.name, "started")) == 1
        _kill(pids)

    def test_a_machine_that_is_taken_away_with_notice_leaves_time_to_save_and_a_lost_job(self, cluster) -> None:
        spec = job("wait")
        cluster.launcher().submit(spec)
        until(lambda: cluster.launcher().status(spec.name).step)
        cluster.engine.preempt(cluster.engine_id(spec.name), grace_seconds=30)
        status = settled(cluster.launcher(), spec.name)
        assert status.phase is JobPhase.LOST
        assert "preempted" in status.reason
        assert len(cluster.events(spec.name, "saved")) == 1

    def test_an_engine_that_has_forgotten_a_job_does_not_lose_it(self, cluster: Cluster) -> None:
        spec = job("wait")
        cluster.launcher().submit(spec)
        until(lambda: cluster.launcher().status(spec.name).step)
        run = cluster.engine.forget(cluster.engine_id(spec.name))
        status = cluster.launcher().status(spec.name)
        assert (status.phase, cluster.launcher().submit(spec).attempt) == (JobPhase.RUNNING, 1), status
        cluster.launcher().stop(spec.name, "enough")
        assert settled(cluster.launcher(), spec.name).phase is JobPhase.STOPPED
        run.processes[0].wait(20)

    def test_an_attempt_that_was_given_up_ends_by_itself_and_changes_nothing(self, cluster, monkeypatch) -> None:
        spec = job("wait")
        cluster.launcher().submit(spec)
        until(lambda: cluster.launcher().status(spec.name).step)
        pids = cluster.pids(spec.name)
        zombie = cluster.engine.forget(cluster.engine_id(spec.name))
        os.kill(zombie.processes[0].pid, signal.SIGSTOP)  # and its machine stands still
        monkeypatch.setattr(judging, "SETTLE_SECONDS", 0.0)
        assert cluster.launcher().status(spec.name).phase is JobPhase.LOST
        assert cluster.launcher().submit(spec).attempt == 2
        until(lambda: cluster.has(spec.name, "claim.json", attempt=2))
        os.kill(zombie.processes[0].pid, signal.SIGCONT)
        assert zombie.processes[0].wait(30) == 78
        until(lambda: not living(pids), within=10)
        assert cluster.launcher().status(spec.name).phase is JobPhase.RUNNING
        cluster.launcher().stop(spec.name, "enough")
        status = settled(cluster.launcher(), spec.name)
        assert (status.phase, status.attempt) == (JobPhase.STOPPED, 2)

    def test_a_result_is_not_lost_with_the_agent_that_stored_it(self, cluster: Cluster) -> None:
        spec = job("echo")
        cluster.launcher().submit(spec)
        before = settled(cluster.launcher(), spec.name)
        until(lambda: cluster.engine.state(cluster.engine_id(spec.name)).settled)
        end = JobKeys(spec.name).of(1, "ended.json")
        cluster.store.delete([end])  # as if it had been killed between the two
        assert cluster.launcher().status(spec.name) == before
        assert cluster.launcher().result(spec.name)["attempt"] == 1
        assert cluster.store.head(end) is not None

    def test_a_job_that_waits_for_machines_says_so_and_a_stop_takes_it_from_the_queue(self, cluster: Cluster) -> None:
        spec = job("echo")
        cluster.engine.hold = True
        cluster.launcher().submit(spec)
        status = cluster.launcher().status(spec.name)
        assert (status.phase, status.reason) == (JobPhase.RUNNING, "waits for machines")
        cluster.launcher().stop(spec.name, "not needed")
        status = cluster.launcher().status(spec.name)
        assert status.phase is JobPhase.STOPPED
        assert "not needed" in status.reason
        cluster.engine.release()
        assert cluster.engine.started == []

    def test_a_stop_that_comes_while_the_agent_begins_is_obeyed(self, cluster: Cluster) -> None:
        spec = job("wait")
        cluster.engine.hold = True
        cluster.launcher().submit(spec)
        key = JobKeys(spec.name).of(1, "stop.json")
        cluster.store.create(key, b'{"schema": "RemoteStop/1", "reason": "changed our mind"}')
        cluster.engine.release()
        status = settled(cluster.launcher(), spec.name)
        assert status.phase is JobPhase.STOPPED
        assert "changed our mind" in status.reason

    def test_an_agent_that_does_not_obey_a_stop_is_cancelled_in_the_engine(self, cluster, monkeypatch) -> None:
        spec = job("wait", grace_seconds=0)
        cluster.launcher().submit(spec)
        until(lambda: cluster.launcher().status(spec.name).step)
        pids = cluster.pids(spec.name)
        agent = cluster.engine.runs[cluster.engine_id(spec.name)].processes[0]
        os.kill(agent.pid, signal.SIGSTOP)
        cluster.launcher().stop(spec.name, "enough")
        assert cluster.launcher().status(spec.name).phase is JobPhase.RUNNING
        monkeypatch.setattr("deepseek_ops.adapters.remote_launcher.reading.CANCEL_AFTER_SECONDS", 0.0)
        status = settled(cluster.launcher(), spec.name)
        assert status.phase is JobPhase.STOPPED
        assert status.reason.startswith("enough; then: it was cancelled in the engine")
        until(lambda: not living(pids[:1]), within=10)
        _kill(pids)


class TestHousekeeping:
    def test_retiring_removes_everything_and_the_name_begins_anew(self, cluster: Cluster) -> None:
        spec = job("second_time_lucky")
        launcher = cluster.launcher()
        launcher.submit(spec)
        with pytest.raises(JobNotSettledError):
            launcher.retire(spec.name)
        settled(launcher, spec.name)
        other = cluster.launcher()
        other.retire(spec.name)
        other.retire(spec.name)
        assert (list(cluster.store.list("jobs/")), launcher.list(), launcher.status(spec.name)) == ([], [], None)
        assert launcher.submit(spec).attempt == 1
        # It would have succeeded, had it found what the job of the same name left on the machine.
        assert settled(launcher, spec.name).phase is JobPhase.LOST

    def test_the_reaper_ends_what_nobody_wants_and_no_attempt_stands_for(self, cluster: Cluster) -> None:
        cluster.engine.hold = True
        unwanted, wanted, done = job("wait", lease_seconds=30), job("wait"), job("echo")
        for spec in (unwanted, wanted):
            cluster.launcher().submit(spec)
        orphan = new_engine_id("gone", 1, cluster.store.uri)
        foreign = new_engine_id("theirs", 1, "s3://another/store")
        for engine_id in (orphan, foreign):
            cluster.engine.start(EngineJob(id=engine_id, command=("true",), timeout_seconds=1, grace_seconds=0))
        cluster.engine.hold = False
        cluster.launcher().submit(done)
        settled(cluster.launcher(), done.name)
        until(lambda: cluster.engine.state(cluster.engine_id(done.name)).settled)
        assert {item.engine_id: item.action for item in reap(cluster.launcher())} == {
            orphan: "cancelled",
            cluster.engine_id(done.name): "retired",
        }
        later = {item.job: item.action for item in reap(cluster.launcher(), now=time.time() + 200) if item.job}
        assert later == {unwanted.name: "cancelled"}
        status = cluster.launcher().status(unwanted.name)
        assert status.phase is JobPhase.STOPPED
        assert "lease expired" in status.reason
        assert cluster.engine.state(foreign).phase is EnginePhase.PENDING
        assert cluster.launcher().status(wanted.name).phase is JobPhase.RUNNING
        assert [item.job for item in reap(cluster.launcher()) if item.job] == [unwanted.name], "retired, and no more"

    def test_the_reaper_cancels_the_engines_job_of_an_attempt_that_a_newer_one_has_replaced(self, cluster) -> None:
        spec = job("echo")
        cluster.engine.before_start = killed
        with pytest.raises(Killed):
            cluster.launcher().submit(spec)
        cluster.launcher().stop(spec.name, "start it again")
        cluster.launcher().submit(spec)
        settled(cluster.launcher(), spec.name)
        old = cluster.engine_id(spec.name, 1)
        cluster.engine.hold = True
        cluster.engine.start(EngineJob(id=old, command=("true",), timeout_seconds=1, grace_seconds=0))
        assert ("cancelled", old) in {(item.action, item.engine_id) for item in reap(cluster.launcher())}


class CountingStore(LocalStore):
    """A store that counts what is asked of it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.asked: Counter[str] = Counter()

    def create(self, key: str, data: bytes) -> None:
        self.asked["create"] += 1
        super().create(key, data)

    def get(self, key: str, *, start: int = 0, length: int | None = None) -> bytes:
        self.asked["get"] += 1
        return super().get(key, start=start, length=length)

    def list(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[ObjectInfo]:
        self.asked["list"] += 1
        return super().list(prefix, start_after=start_after, limit=limit)

    def head(self, key: str) -> ObjectInfo | None:
        self.asked["head"] += 1
        return super().head(key)

    def delete(self, keys: Sequence[str]) -> None:
        self.asked["delete"] += 1
        super().delete(keys)


class TestCost:
    def test_a_look_at_a_job_costs_a_listing_and_at_most_one_object(self, cluster: Cluster) -> None:
        store = CountingStore(cluster.root / "store")
        launcher = cluster.launcher(store)
        spec = job("wait")
        launcher.submit(spec)
        until(lambda: launcher.status(spec.name).step)

        def cost(ask: object) -> dict[str, int]:
            store.asked.clear()
            ask()  # type: ignore[operator]
            return dict(store.asked)

        looks = [cost(lambda: launcher.status(spec.name)) for _ in range(20)]
        assert looks.count({"list": 1, "get": 1}) >= 15, "a beat may be replaced between the two, and is asked again"
        assert cost(lambda: launcher.renew(spec.name)).keys() <= {"list", "create", "delete"}
        launcher.stop(spec.name, "enough")
        settled(launcher, spec.name)
        assert cost(lambda: launcher.status(spec.name)) == {"list": 1}
        _, end = launcher.logs(spec.name)
        assert cost(lambda: launcher.logs(spec.name, end)) == {"list": 1}
        count = len(launcher.events(spec.name))
        assert cost(lambda: launcher.events(spec.name, count)) == {"list": 1}


def _kill(pids: list[int]) -> None:
    """End the programs that a job's code had started on a machine that was switched off."""
    for pid in living(pids):
        os.kill(pid, signal.SIGKILL)
