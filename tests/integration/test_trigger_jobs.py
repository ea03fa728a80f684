"""Following a job: settled is told, a person's stop stops it, a restarted triggerer does not."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest

from deepseek_ops.airflow.hooks import ConnectionMissingError
from deepseek_ops.airflow.triggers import jobs
from deepseek_ops.airflow.triggers.jobs import TrainingJobTrigger
from deepseek_ops.core.errors import TransientError
from deepseek_ops.core.jobs import JobPhase, JobStatus


class Engine:
    """The part of a Launcher a trigger uses, with what it was asked."""

    def __init__(self) -> None:
        self.phase: JobPhase | None = JobPhase.RUNNING
        self.renewed = 0
        self.stopped: list[str] = []
        self.away = 0

    def status(self, name: str) -> JobStatus | None:
        if self.away:
            self.away -= 1
            raise TransientError
        return None if self.phase is None else JobStatus(name=name, phase=self.phase)

    def renew(self, name: str) -> None:
        self.renewed += 1

    def stop(self, name: str, reason: str) -> None:
        self.stopped.append(reason)
        self.phase = JobPhase.STOPPED


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = Engine()
    monkeypatch.setattr(jobs, "_open", lambda conn_id: engine)
    return engine


def trigger(**changes: Any) -> TrainingJobTrigger:
    path, kwargs = TrainingJobTrigger(**{"job_name": "train-1", "poll_interval": 0.05, **changes}).serialize()
    assert path == "deepseek_ops.airflow.triggers.jobs.TrainingJobTrigger"
    rebuilt = TrainingJobTrigger(**json.loads(json.dumps(kwargs)))
    assert rebuilt.serialize() == (path, kwargs)
    return rebuilt


async def payloads(running: TrainingJobTrigger) -> list[JobStatus]:
    async with asyncio.timeout(20):
        return [JobStatus.load(event.payload) async for event in running.run()]


async def test_the_lease_is_renewed_until_the_job_settles(engine: Engine) -> None:
    waiting = asyncio.ensure_future(payloads(trigger()))
    while engine.renewed < 3:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    assert not waiting.done()
    engine.phase = JobPhase.SUCCEEDED
    assert [status.phase for status in await waiting] == [JobPhase.SUCCEEDED]
    assert engine.stopped == []


async def test_an_engine_that_does_not_answer_for_a_while_is_no_lost_job(engine: Engine) -> None:
    engine.away, engine.phase = 1, JobPhase.FAILED
    assert [status.phase for status in await payloads(trigger())] == [JobPhase.FAILED]


async def test_a_job_the_engine_does_not_know_is_lost(engine: Engine) -> None:
    engine.phase = None
    assert [status.phase for status in await payloads(trigger())] == [JobPhase.LOST]


async def test_a_person_who_kills_the_task_stops_the_job_and_a_cancelled_trigger_does_not(engine: Engine) -> None:
    running = trigger()
    task = asyncio.ensure_future(payloads(running))
    while not engine.renewed:  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await running.cleanup()
    assert engine.stopped == [], "a triggerer that restarts must leave the job running"
    await running.on_kill()
    assert engine.stopped == ["its task was stopped in Airflow while it waited"]


async def test_a_deadline_stops_the_job_and_its_end_is_told(engine: Engine) -> None:
    assert [status.phase for status in await payloads(trigger(deadline=time.time() - 1))] == [JobPhase.STOPPED]
    assert engine.stopped == ["its deadline passed"]


async def test_a_missing_connection_ends_the_wait_with_its_error() -> None:
    with pytest.raises(ConnectionMissingError, match="no_such_launcher"):
        await payloads(trigger(launcher_conn_id="no_such_launcher"))
