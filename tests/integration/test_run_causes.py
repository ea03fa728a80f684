"""What Airflow's events make of a run: its commit, and why, or one reason to skip."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from airflow.sdk.exceptions import AirflowSkipException
from fixtures_git import Developer, file_developer  # noqa: F401
from fixtures_triggers import connect

from deepseek_ops.airflow.assets import DATASET, MODEL_REPOSITORY, MODEL_SCHEDULE
from deepseek_ops.airflow.operators.source import OtherPushesOperator, ResolveSourceOperator
from deepseek_ops.core.records import GitRef
from deepseek_ops.pipeline.pushes import Source

WATCHING = "triggers: [{type: data-arrival, uri: s3://lake/raw/}, {type: schedule, cron: '@daily'}]\n"


@pytest.fixture
def resolve(file_developer: Developer, monkeypatch, tmp_path):  # noqa: F811
    connect(monkeypatch, "model", conn_type="git", host=f"file://{file_developer.bare}")
    connect(monkeypatch, "deepseek_ops_facts", conn_type="deepseek_facts", host=f"sqlite:///{tmp_path / 'facts.db'}")
    monkeypatch.setenv("DEEPSEEK_OPS_CACHE", str(tmp_path / "cache"))

    def run(events, run_id="run-1", **params):
        batches = {asset: [SimpleNamespace(extra=extra, timestamp=1)] for asset, extra in events.items()}
        context = {
            "params": {"repository": "model", "ref": "", **params},
            "run_id": run_id,
            "triggering_asset_events": batches,
        }
        source = ResolveSourceOperator(task_id="resolve", git_conn_id="model").execute(context)
        return Source.load(source), OtherPushesOperator(task_id="others", source=source).execute(context)

    return run


def pushed(developer: Developer, commit: str, branch: str = "exp/a"):
    name = f"refs/heads/{branch}"
    return {"payload": GitRef(repository=developer.remote.url, name=name, commit=commit).dump()}


def test_data_and_schedules_run_main_where_its_own_file_wants_them(resolve, file_developer):  # noqa: F811
    commit = file_developer.push_commit({"deepseek.yaml": WATCHING})
    for asset, extra, cause in (
        (DATASET, {"uri": "s3://lake/raw/"}, "data"),
        (MODEL_SCHEDULE, {"payload": {"due": {}}}, "schedule"),
    ):
        source, others = resolve({asset: extra})
        assert (source.ref.commit, source.cause, others) == (commit, cause, [])


def test_without_a_trigger_for_it_new_data_skips_the_run_with_the_reason(resolve, file_developer):  # noqa: F811
    file_developer.push_commit({"deepseek.yaml": "name: tiny\n"})
    with pytest.raises(AirflowSkipException, match=r"s3://lake/raw/.*no data-arrival trigger"):
        resolve({DATASET: {"uri": "s3://lake/raw/"}})
    with pytest.raises(AirflowSkipException, match="no schedule trigger"):
        resolve({MODEL_SCHEDULE: {"payload": {}}})


def test_a_person_without_a_ref_gets_main_whatever_its_triggers_say(resolve, file_developer):  # noqa: F811
    commit = file_developer.push_commit({"deepseek.yaml": "name: tiny\n"})
    source, _ = resolve({})
    assert (source.ref.commit, source.cause) == (commit, "manual")


def test_a_push_and_new_data_in_one_batch_are_two_runs(resolve, file_developer):  # noqa: F811
    main = file_developer.push_commit({"deepseek.yaml": WATCHING})
    other = file_developer.push_commit({"a": "1"}, "exp/a")
    batch = {MODEL_REPOSITORY: pushed(file_developer, other), DATASET: {"uri": "s3://lake/raw/"}}
    source, others = resolve(batch)
    assert (source.ref.commit, source.cause) == (other, "push")
    assert others == [
        {
            "trigger_run_id": "beside__run-1",
            "conf": {"repository": "model", "ref": f"main@{main}", "cause": "data"},
        }
    ]
    again, others = resolve(batch, run_id="run-2")
    assert (again.ref.commit, again.cause, others) == (main, "data", []), "the push is taken, the data is not lost"
