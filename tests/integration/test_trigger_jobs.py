"""Following a job: settled is told, a person's stop stops it, a restarted triggerer does not."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
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
        self.wall_seconds = 0.0
        self.stopped: list[str] = []
        self.away = 0
        self.said = ""
        self.told: list[dict[str, Any]] = []

    def logs(self, name: str, offset: int = 0) -> tuple[str, int]:
        return self.said[offset:], len(self.said)

    def events(self, name: str, after: int = 0) -> list[dict[str, Any]]:
        return self.told[after:]

    def status(self, name: str) -> JobStatus | None:
        if self.away:
            self.away -= 1
            raise TransientError
        known = self.phase and JobStatus(name=name, phase=self.phase, wall_seconds=self.wall_seconds)
        return known or None

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


async def test_time_in_an_engines_queue_is_none_of_execution_timeout(engine: Engine) -> None:
    waits = trigger(deadline=time.time() - 1, limit_seconds=1)
    running = asyncio.ensure_future(payloads(waits))
    await asyncio.sleep(0.4)
    assert engine.stopped == [], "no machine has begun with it"
    engine.wall_seconds = 0.8
    await asyncio.sleep(0.15)
    assert engine.stopped == [], "it has had its machines for less than the limit"
    assert [status.phase for status in await running] == [JobPhase.STOPPED]
    assert "execution_timeout of 1 s passed" in engine.stopped[0]


async def test_a_machine_that_fell_silent_does_not_put_the_deadline_off(engine: Engine) -> None:
    engine.wall_seconds = 0.9  # from here on it says nothing new
    ended = await payloads(trigger(deadline=time.time() - 1, limit_seconds=1))
    assert [status.phase for status in ended] == [JobPhase.STOPPED]


async def test_a_missing_connection_ends_the_wait_with_its_error() -> None:
    with pytest.raises(ConnectionMissingError, match="no_such_launcher"):
        await payloads(trigger(launcher_conn_id="no_such_launcher"))


ALERT = {
    "kind": "guardian",
    "attempt": 1,
    "step": 40,
    "rule": "training_loss: value > 20",
    "severity": "critical",
    "action": "rewind",
    "max_attempts": 3,
    "reason": "training_loss: value > 20 (last values: 21)",
}


async def test_the_jobs_log_is_in_the_tasks_log_while_it_runs_and_its_progress_is_noted(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    noted: list[dict[str, Any]] = []
    running = trigger()
    monkeypatch.setattr(running, "_note", noted.append)
    engine.said = "first line\n"
    engine.told = [
        {"kind": "started", "total_steps": 100},
        {"kind": "metric", "step": 40, "training_loss": 3.5, "step_seconds": 0.5, "tokens_per_second": 9.0},
    ]
    asyncio.get_running_loop().call_later(0.3, lambda: setattr(engine, "said", engine.said + "second line\n"))
    asyncio.get_running_loop().call_later(0.6, lambda: setattr(engine, "phase", JobPhase.SUCCEEDED))
    await payloads(running)
    lines = [record.message for record in caplog.records]
    assert lines.count("first line") == 1
    assert lines.count("second line") == 1
    known = {"step": 40, "total_steps": 100, "training_loss": 3.5, "tokens_per_second": 9.0, "eta_seconds": 30.0}
    assert noted[0] == {**known, "attempt": 1, "restarts": 0}


async def test_people_are_told_once_even_when_the_triggerer_starts_over(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dsn = {"conn_type": "deepseek_facts", "host": f"sqlite:///{tmp_path}/facts.db"}
    monkeypatch.setenv("AIRFLOW_CONN_DEEPSEEK_OPS_FACTS", json.dumps(dsn))
    received: list[dict[str, Any]] = []
    with listening(received) as url:
        engine.told = [
            {**ALERT, "notify": [{"type": "http", "url": url}, {"type": "http", "url": "http://127.0.0.1:9/"}]}
        ]
        engine.told.append({**engine.told[0], "step": 41, "repeated": True})
        engine.phase = JobPhase.SUCCEEDED
        for _ in range(2):
            await payloads(trigger(run="run-1"))
    assert [(one["step"], one["job"], one["run"], one["action"]) for one in received] == [
        (40, "train-1", "run-1", "rewind")
    ]


@contextmanager
def listening(received: list[dict[str, Any]]) -> Iterator[str]:
    """A web server that keeps what is posted to it."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
