"""A superseded run stops its jobs after they have saved, and takes nothing from a run that needs them too."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from airflow.sdk.exceptions import AirflowSkipException, TaskDeferred
from fixtures_launcher import job, settled, until
from fixtures_triggers import connect

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.adapters.local_launcher import LocalLauncher
from deepseek_ops.airflow.operators import turn as turn_module
from deepseek_ops.airflow.operators.base import JobOperator
from deepseek_ops.airflow.operators.turn import AwaitTurnOperator
from deepseek_ops.airflow.triggers import jobs as jobs_module
from deepseek_ops.airflow.triggers import turn as turn_trigger_module
from deepseek_ops.airflow.triggers.jobs import TrainingJobTrigger
from deepseek_ops.airflow.triggers.turn import TurnTrigger
from deepseek_ops.core.errors import JobLostError
from deepseek_ops.core.jobs import JobPhase, JobStatus
from deepseek_ops.core.records import GitRef, RunManifest
from deepseek_ops.pipeline.policy import Lane, Turn, enter, lane_key, lane_of
from deepseek_ops.pipeline.pushes import Source
from deepseek_ops.pipeline.runs import RunPlan

REF = GitRef(repository="https://h/m.git", name="refs/heads/exp/a", commit=f"{1:040x}")
NEWER = f"{2:040x}"
RUN = RunPlan(
    manifest=RunManifest(
        name="tiny", source=REF, tree=REF.commit, config_digest="c" * 64, environment="e", software="0"
    ),
    code="d" * 64,
)
LANE = lane_key(REF)


class Follow(JobOperator):
    """Follows one job that works until it is told to stop."""

    poll_seconds = 0.05
    turn_seconds = 0.1

    def __init__(self, *, spec, **fields) -> None:
        super().__init__(**fields)
        self.spec, self.run = spec, RUN.dump()

    def job(self, context):
        return self.spec

    def finish(self, result, *, reused, context):
        return result


@pytest.fixture
def facts(tmp_path, monkeypatch):
    connect(monkeypatch, "deepseek_ops_store", conn_type="deepseek_store", host=f"file://{tmp_path / 'store'}")
    connect(monkeypatch, "deepseek_ops_facts", conn_type="deepseek_facts", host=f"sqlite:///{tmp_path / 'facts.db'}")
    connect(monkeypatch, "deepseek_ops_launcher", conn_type="deepseek_launcher", host=str(tmp_path / "jobs"))
    return open_facts(f"sqlite:///{tmp_path / 'facts.db'}")


@pytest.fixture
def launcher(tmp_path, facts):
    launcher = LocalLauncher(tmp_path / "jobs")
    yield launcher
    launcher.shutdown(grace_seconds=5.0)


def push(facts, number: int, policy: str = "supersede") -> None:
    turn = Turn(run=f"run-{number}", commit=f"{number:040x}", order=f"2026-01-0{number}", policy=policy)
    enter(facts, LANE, turn)


def follow(spec, run: str):
    return Follow(task_id="follow", spec=spec).execute({"run_id": run, "ti": None})


def test_the_job_of_a_superseded_run_saves_and_ends_and_its_task_is_skipped_with_the_reason(facts, launcher):
    push(facts, 1)
    spec = job("wait")
    with ThreadPoolExecutor(1) as pool:
        older = pool.submit(follow, spec, "run-1")
        until(lambda: (status := launcher.status(spec.name)) and status.step)
        push(facts, 2)
        with pytest.raises(AirflowSkipException, match=f"superseded by {NEWER}"):
            older.result(timeout=60)
    assert launcher.status(spec.name).phase is JobPhase.STOPPED
    saved = [event for event in launcher.events(spec.name) if event["kind"] == "saved"]
    assert saved[0]["reason"] == f"superseded by {NEWER}"
    with pytest.raises(AirflowSkipException):
        Follow(task_id="later", spec=spec).pre_execute({"run_id": "run-1"})
    Follow(task_id="later", spec=spec).pre_execute({"run_id": "run-2"})


def test_a_job_that_the_newer_run_needs_too_goes_on_for_it(facts, launcher):
    push(facts, 1)
    spec = job("wait")
    with ThreadPoolExecutor(2) as pool:
        older = pool.submit(follow, spec, "run-1")
        until(lambda: (status := launcher.status(spec.name)) and status.step)
        newer = pool.submit(follow, spec, "run-2")
        push(facts, 2)
        with pytest.raises(AirflowSkipException):
            older.result(timeout=60)
        with pytest.raises(JobLostError, match="this run needs it still"):
            newer.result(timeout=60)
        again = pool.submit(follow, spec, "run-2")  # what the retry policy does with a transient error
        until(lambda: (status := launcher.status(spec.name)) and status.attempt == 2 and status.step)
        late = pool.submit(follow, spec, "run-1")  # a task of the older run that comes late stops nobody's attempt
        launcher.stop(spec.name, "the test is over")
        for task in (again, late):
            with pytest.raises(Exception, match=r"the test is over|superseded"):
                task.result(timeout=60)


async def test_a_deferred_training_of_a_superseded_run_is_stopped_too(facts, launcher, monkeypatch):
    monkeypatch.setattr(jobs_module, "TURN_SECONDS", 0.1)
    push(facts, 1)
    spec = job("wait")
    await asyncio.to_thread(launcher.submit, spec)
    _, kwargs = TrainingJobTrigger(job_name=spec.name, poll_interval=0.05, lane=LANE, run="run-1").serialize()
    waiting = asyncio.ensure_future(anext(TrainingJobTrigger(**json.loads(json.dumps(kwargs))).run()))
    await asyncio.to_thread(until, lambda: (status := launcher.status(spec.name)) and status.step)
    assert not waiting.done()
    push(facts, 2)
    event = await asyncio.wait_for(waiting, timeout=60)
    status = JobStatus.load(event.payload)
    assert status.phase is JobPhase.STOPPED
    assert NEWER in status.reason
    await asyncio.to_thread(settled, launcher, spec.name)


class Told(dict):
    """The part of a task instance that a task tells its note to."""

    def xcom_push(self, key, value):
        self[key] = value


class DagRun:
    dag_id = "retrain"

    def __init__(self, day: int) -> None:
        import datetime as dt

        self.run_after = dt.datetime(2026, 1, day, tzinfo=dt.UTC)


def awaiting(number: int, monkeypatch, policy: str, *, cause: str = "push"):
    monkeypatch.setattr(AwaitTurnOperator, "_policy", lambda self, run: policy)
    ref = REF.evolve(commit=f"{number:040x}")
    run = RUN.evolve(manifest=RUN.manifest.evolve(source=ref))
    operator = AwaitTurnOperator(task_id="turn", source=Source(ref=ref, cause=cause).dump(), run=run.dump())
    told = Told()
    context = {"run_id": f"run-{number}", "dag_run": DagRun(number), "ti": told}
    return operator, context, told


async def test_a_queued_run_defers_until_the_older_one_has_ended_however_it_ended(facts, monkeypatch):
    live = {"run-1"}
    for module in (turn_module, turn_trigger_module):
        monkeypatch.setattr(module, "has_ended", lambda dag_id, run: run not in live)
    first, context, told = awaiting(1, monkeypatch, "queue")
    assert first.execute(context) == "queue: goes on"
    second, context, told = awaiting(2, monkeypatch, "queue")
    with pytest.raises(TaskDeferred) as deferred:
        second.execute(context)
    assert told["note"] == "queue: waits for run-1"
    path, kwargs = deferred.value.trigger.serialize()
    rebuilt = TurnTrigger(**json.loads(json.dumps({**kwargs, "poll_interval": 0.05})))
    assert path.endswith("TurnTrigger")
    waiting = asyncio.ensure_future(anext(rebuilt.run()))
    await asyncio.sleep(0.5)
    assert not waiting.done()
    live.clear()  # deleted, failed, or marked so: Airflow says it is not running any more
    event = await asyncio.wait_for(waiting, timeout=20)
    assert second.execute_complete(context, event.payload) == "queue: goes on"
    assert second.execute(context) == "queue: goes on", "a task that is tried again changes nothing"


def test_a_run_whose_turn_was_forgotten_while_it_waited_waits_again(facts, monkeypatch):
    monkeypatch.setattr(turn_module, "has_ended", lambda dag_id, run: False)
    awaiting(1, monkeypatch, "queue")[0].execute(awaiting(1, monkeypatch, "queue")[1])
    second, context, _ = awaiting(2, monkeypatch, "queue")
    with pytest.raises(TaskDeferred):
        second.execute(context)
    fact = facts.get("lane", LANE)
    facts.update(fact, Lane(turns=lane_of(facts, LANE).turns[:1]).dump())  # as long lanes were cut once
    with pytest.raises(TaskDeferred):
        second.execute_complete(context, {"state": "gone"})


def test_a_run_that_is_superseded_while_it_starts_is_skipped_and_says_by_what(facts, monkeypatch):
    monkeypatch.setattr(turn_module, "has_ended", lambda dag_id, run: False)
    newer, context, told = awaiting(2, monkeypatch, "supersede")
    newer.execute(context)
    older, context, told = awaiting(1, monkeypatch, "supersede")
    with pytest.raises(AirflowSkipException, match=NEWER):
        older.execute(context)
    assert told["note"].startswith(f"superseded by {NEWER}")


def test_runs_that_no_push_started_take_no_turn(facts, monkeypatch):
    operator, context, _ = awaiting(1, monkeypatch, "supersede", cause="manual")
    assert "no push" in operator.execute(context)
    assert lane_of(facts, LANE).turns == ()
