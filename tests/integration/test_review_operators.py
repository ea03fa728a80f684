"""The tasks that report a run: against a host on loopback, with the facts of the run, twice and in every ending."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException
from fixtures_review_hosts import COMMIT, OTHER, TOKEN, Fault, Host, github_app, serving

from deepseek_ops.adapters import rest
from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.airflow.operators.review import NoteFailure, ReportResultOperator, ReportStartedOperator
from deepseek_ops.core.errors import StoreUnavailableError
from deepseek_ops.core.records import GitRef
from deepseek_ops.core.reporting import ServiceUnavailableError
from deepseek_ops.pipeline.pushes import Source
from deepseek_ops.pipeline.review import failures_of

REF = GitRef(repository="https://github.com/team/model", name="refs/heads/exp/lr", commit=COMMIT)
SOURCE = Source(ref=REF).dump()
RESULTS = {"dataset": None, "checkpoint": None, "evaluations": None, "version": None, "recorded": None}


def connection(host: Host, **extra: str) -> str:
    settings = {"review": "github", "review_url": host.url, **extra}
    return json.dumps(
        {"conn_type": "git", "host": "https://github.com/team/model", "password": TOKEN, "extra": settings}
    )


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Host]:
    found = Host(pulls={7: ("open", [COMMIT, OTHER])})
    dsn = f"sqlite:///{tmp_path / 'facts.db'}"
    monkeypatch.setenv("AIRFLOW_CONN_DEEPSEEK_OPS_FACTS", json.dumps({"conn_type": "deepseek_facts", "host": dsn}))
    monkeypatch.setenv("AIRFLOW__API__BASE_URL", "https://airflow.corp/base")
    monkeypatch.setattr(rest, "TRIES", 1)
    with serving(github_app(found), found):
        monkeypatch.setenv("AIRFLOW_CONN_DEEPSEEK_OPS_GIT", connection(found))
        found.facts = open_facts(dsn)  # type: ignore[attr-defined]
        yield found


def context(states: dict[str, str] | None = None, **changes: Any) -> Any:
    ti = SimpleNamespace(
        dag_id="retrain", task_id="report_result", run_id="manual__1", try_number=1, max_tries=3, **changes
    )
    ti.get_task_states = lambda dag_id, run_ids: {run_ids[0]: states or {}}
    return {"ti": ti, "run_id": "manual__1", "exception": StoreUnavailableError("s3://bucket", "away")}


def started(run: Any) -> ReportStartedOperator:
    return ReportStartedOperator(task_id="report_started", source=SOURCE, run=run, git_conn_id="deepseek_ops_git")


def result(**changes: Any) -> ReportResultOperator:
    return ReportResultOperator(
        task_id="report_result", source=SOURCE, git_conn_id="deepseek_ops_git", **{**RESULTS, **changes}
    )


def test_a_run_that_starts_is_pending_and_links_to_airflow(host: Host) -> None:
    for _ in range(2):
        started({"dry_run": False}).execute(context())
    (status,) = host.statuses
    assert status["state"] == "pending"
    assert status["target_url"] == "https://airflow.corp/base/dags/retrain/runs/manual__1"


@pytest.mark.parametrize("run", [None, {"dry_run": True}])
def test_what_starts_nothing_is_not_pending(host: Host, run: Any) -> None:
    with pytest.raises(AirflowSkipException):
        started(run).execute(context())
    assert host.statuses == []


def test_a_failure_before_the_plan_is_told_with_its_reason(host: Host) -> None:
    NoteFailure().notify(context() | {"ti": SimpleNamespace(run_id="manual__1", task_id="plan_run")})
    told = result().execute(context({"resolve_source": "success", "plan_run": "failed", "train": "upstream_failed"}))
    assert told["state"] == "error"
    assert host.statuses[-1]["state"] == "error"
    assert "s3://bucket is not available" in host.statuses[-1]["description"]
    assert "s3://bucket" in host.bodies(7)[0].replace("\\", "")


def test_a_reason_is_kept_and_told_without_the_credentials_of_its_urls(host: Host) -> None:
    reason = "requirements.txt: git+https://bob:ghp_hush@github.com/o/r.git, see https://h/x?X-Amz-Signature=hush&a=1"
    failed = context({"plan_run": "failed"}) | {"exception": ValueError(reason)}
    NoteFailure().notify(failed | {"ti": SimpleNamespace(run_id="manual__1", task_id="plan_run")})
    (kept,) = failures_of(host.facts, "manual__1", ["plan_run"])  # type: ignore[attr-defined]
    assert kept.reason.endswith("git+https://***@github.com/o/r.git, see https://h/x?X-Amz-Signature=***&a=1")
    (fact,) = host.facts.find("task-failure", run="manual__1")  # type: ignore[attr-defined]
    result().execute(context({"plan_run": "failed"}))
    assert "hush" not in json.dumps([fact.body, host.statuses, host.bodies(7)])


def test_a_task_that_was_killed_without_a_word_is_told_too(host: Host) -> None:
    told = result().execute(context({"evaluate_0": "success", "evaluate_1": "failed", "report_started": "failed"}))
    assert told["summary"].startswith("evaluate failed: it left no reason")
    assert told["state"] == "failure"


def test_a_reason_of_an_earlier_try_is_not_told_of_a_task_that_succeeded(host: Host) -> None:
    NoteFailure().notify(context() | {"ti": SimpleNamespace(run_id="manual__1", task_id="train")})
    assert failures_of(host.facts, "manual__1", []) == ()  # type: ignore[attr-defined]


def test_a_result_is_told_once_at_both_ends_of_the_branch(host: Host) -> None:
    recorded = {"commit": OTHER, "tag": "exp-1"}
    for _ in range(2):
        told = result(recorded=recorded).execute(context({"train": "success"}))
    assert {(one["sha"], one["state"]) for one in host.statuses} == {(COMMIT, "error"), (OTHER, "error")}
    assert len(host.statuses) == 2
    assert len(host.bodies(7)) == 1
    assert len(told["comments"]) == 1


def test_a_host_that_is_down_is_tried_again_and_never_fails_the_run(host: Host) -> None:
    host.faults += [Fault("GET", "/statuses", 503) for _ in range(2)]
    with pytest.raises(ServiceUnavailableError):
        result().execute(context())
    last = context()
    last["ti"].try_number = 4
    with pytest.raises(AirflowSkipException, match="not reported"):
        result().execute(last)


def test_a_token_without_rights_skips_at_once(host: Host) -> None:
    host.faults.append(Fault("GET", "/statuses", 403, body={"message": "Resource not accessible"}))
    with pytest.raises(AirflowSkipException, match="Resource not accessible"):
        result().execute(context())


@pytest.mark.parametrize("extra", [{"review": "off"}, {"review": "bitbucket"}])
def test_what_is_switched_off_or_wrong_skips(host: Host, monkeypatch: pytest.MonkeyPatch, extra: Any) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_DEEPSEEK_OPS_GIT", connection(host, **extra))
    with pytest.raises(AirflowSkipException):
        result().execute(context())
    assert host.requests == []


def test_a_failure_that_cannot_be_kept_hides_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_DEEPSEEK_OPS_FACTS", json.dumps({"conn_type": "deepseek_facts", "host": "?"}))
    NoteFailure().notify(context())
