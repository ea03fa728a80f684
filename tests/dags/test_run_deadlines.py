"""Deadline alerts of the retrain DAG: off by default, Airflow's own where configured, and told to people."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from fixtures_triggers import connect

from deepseek_ops.airflow.deadlines import DeadlineSettingError, run_deadlines

DAGS = Path(__file__).parents[2] / "dags"
VARIABLE = "AIRFLOW__DEEPSEEK_OPS__RUN_DEADLINE_HOURS"
CONTEXT = {
    "dag_run": {
        "dag_id": "retrain",
        "dag_run_id": "manual__1",
        "state": "running",
        "queued_at": "2026-05-01T00:00:00Z",
    },
    "deadline": {"id": "1", "deadline_time": "2026-05-02T00:00:00Z"},
}


@pytest.fixture
def pager(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """A pager on loopback behind a connection; yields what it was sent."""
    seen: list[dict[str, Any]] = []

    class Desk(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            seen.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Desk)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    connect(monkeypatch, "pager", conn_type="http", host=f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AIRFLOW__DEEPSEEK_OPS__PAGE_CONN_ID", "pager")
    yield seen
    server.shutdown()
    server.server_close()
    thread.join()


def loaded() -> Any:
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(dag_folder=str(DAGS / "retrain.py"))
    assert bag.import_errors == {}
    return bag.dags["retrain"]


def test_there_is_no_deadline_unless_somebody_wants_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert run_deadlines() == {}
    assert not loaded().deadline


async def test_a_run_that_is_late_is_told_by_airflow_to_the_pager(pager, monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.serialization.serialized_objects import DagSerialization
    from airflow.triggers.callback import CallbackTrigger

    monkeypatch.setenv(VARIABLE, "24, 72")
    dag = loaded()
    assert [alert.interval for alert in dag.deadline] == [timedelta(hours=24), timedelta(hours=72)]
    assert [type(alert.reference).__name__ for alert in dag.deadline] == ["DagRunQueuedAtDeadline"] * 2
    DagSerialization.serialize_dag(dag)
    callback = dag.deadline[0].callback  # as the triggerer runs it, with what the scheduler puts beside
    trigger = CallbackTrigger(callback.path, {**callback.kwargs, "context": CONTEXT})
    states = [event.payload["state"] async for event in trigger.run()]
    assert [str(state) for state in states] == ["running", "success"]
    (told,) = pager
    assert told["reason"] == "[deepseek-ops] retrain is not over 24 h after it was queued"
    assert (told["run"], told["state"], told["rule"]) == ("manual__1", "running", "run_deadline")


@pytest.mark.parametrize("value", ["soon", "24, never", "0", "-1", "inf", "nan"])
def test_hours_that_are_none_are_refused_by_name(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(DeadlineSettingError, match="run_deadline_hours = "):
        run_deadlines()
