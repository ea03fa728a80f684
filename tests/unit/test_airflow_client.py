"""The client of a busy Airflow: what changes nothing is asked again, what starts something is not."""

from __future__ import annotations

import httpx
import pytest

from deepseek_ops.embedded import airflow_standalone
from deepseek_ops.embedded.airflow_standalone import AirflowClient


def busy(silent: int) -> tuple[AirflowClient, list[str]]:
    """Return a client of a server that does not answer the first ``silent`` calls, and what it was asked."""
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.path}")
        if len(asked) <= silent:
            raise httpx.ReadTimeout("timed out", request=request)
        return httpx.Response(200, json={"access_token": "token", "dag_runs": [{"dag_run_id": "one"}]})

    client = AirflowClient("http://127.0.0.1:1", "admin", "password")
    client._http = httpx.Client(base_url="http://127.0.0.1:1", transport=httpx.MockTransport(answer))
    return client, asked


def test_a_late_answer_is_asked_for_again() -> None:
    client, asked = busy(2)
    assert client.runs("retrain") == [{"dag_run_id": "one"}]
    assert asked == ["POST /auth/token"] * 3 + ["GET /api/v2/dags/retrain/dagRuns"]


def test_a_server_that_never_answers_is_given_up() -> None:
    client, asked = busy(100)
    with pytest.raises(httpx.ReadTimeout):
        client.runs("retrain")
    assert len(asked) == airflow_standalone.TRIES


def test_what_starts_something_is_asked_once() -> None:
    client, asked = busy(1)
    client._token = "token"
    with pytest.raises(httpx.ReadTimeout):
        client.post("/dags/retrain/dagRuns", {})
    assert len(asked) == 1
