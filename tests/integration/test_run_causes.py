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

    def run(events, run_id="run-1", conf=None, **params):
        batches = {
            asset: [SimpleNamespace(extra=extra, timestamp=at) for at, extra in enumerate(extras)]
            for asset, extras in ((asset, said if isinstance(said, list) else [said]) for asset, said in events.items())
        }
        context = {
            "params": {"repository": "model", "ref": "", **params},
            "run_id": run_id,
            "dag_run": SimpleNamespace(conf=conf or {}),
            "triggering_asset_events": batches,
        }
        source = ResolveSourceOperator(task_id="resolve", git_conn_id="model").execute(context)
        return Source.load(source), OtherPushesOperator(task_id="others", source=source).execute(context)

    return run


def pushed(developer: Developer, commit: str, branch: str = "exp/a", move: str | None = None):
    name = f"refs/heads/{branch}"
    return {"payload": GitRef(repository=developer.remote.url, name=name, commit=commit, move=move).dump()}


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
            "conf": {"repository": "model", "ref": f"refs/heads/main@{main}", "cause": "data"},
        }
    ]
    again, others = resolve(batch, run_id="run-2")
    assert (again.ref.commit, again.cause, others) == (main, "data", []), "the push is taken, the data is not lost"


@pytest.mark.parametrize(
    ("params", "conf"),
    [
        ({"dry_run": True}, {}),
        ({"overrides": {"training.seed": 7}}, {}),
        ({}, {}),
        ({"dry_run": True}, {"cause": "push"}),
        ({}, {"cause": "tag"}),
    ],
    ids=["dry", "overrides", "manual or sweep", "dry run of a push's conf", "tag"],
)
def test_what_a_person_runs_of_a_commit_leaves_the_push_to_its_own_run(resolve, file_developer, params, conf):  # noqa: F811
    commit = file_developer.push_commit({"a": "1"}, "exp/a")
    looked, _ = resolve({}, run_id="manual__1", conf=conf, ref="exp/a", **params)
    assert looked.ref.commit == commit
    event = {MODEL_REPOSITORY: pushed(file_developer, commit)}
    source, _ = resolve(event, run_id="run-2")
    assert (source.ref.commit, source.cause) == (commit, "push")
    with pytest.raises(AirflowSkipException, match="has a run already"):
        resolve(event, run_id="run-3")


def test_the_run_of_another_push_of_a_batch_takes_it_unless_somebody_was_faster(resolve, file_developer):  # noqa: F811
    one, two = file_developer.push_commit({"a": "1"}, "exp/a"), file_developer.push_commit({"a": "2"}, "exp/v@2")
    other = pushed(file_developer, two, "exp/v@2", "e.4")
    events = {MODEL_REPOSITORY: [pushed(file_developer, one, "exp/a", "e.1"), other]}
    source, (start,) = resolve(events)
    assert (source.ref.commit, source.ref.move) == (one, "e.1")
    begun, _ = resolve({}, run_id=start["trigger_run_id"], conf=start["conf"], **start["conf"])
    assert (begun.ref.commit, begun.ref.move, begun.cause) == (two, "e.4", "push")
    again, _ = resolve({}, run_id=start["trigger_run_id"], conf=start["conf"], **start["conf"])
    assert again == begun, "it is cleared"
    with pytest.raises(AirflowSkipException, match=f"has a run already: {start['trigger_run_id']}"):
        resolve({}, run_id="push__of-an-event-announced-again", conf=start["conf"], **start["conf"])
    with pytest.raises(AirflowSkipException, match="has a run already"):
        resolve({MODEL_REPOSITORY: other}, run_id="run-2")
    repeated, _ = resolve({}, run_id="manual__1", conf=start["conf"], **start["conf"])
    assert repeated.ref.commit == two, "a person who starts it again wants just that"
    cleared, others = resolve(events)
    assert (cleared, others) == (source.evolve(others=()), []), "the first run is cleared"


def test_a_branch_that_was_forced_back_runs_again(resolve, file_developer):  # noqa: F811
    first, second = file_developer.push_commit({"a": "1"}), file_developer.push_commit({"a": "2"})
    for number, commit in enumerate((first, second, first, second)):
        event = {MODEL_REPOSITORY: pushed(file_developer, commit, "main", f"e.{number}")}
        source, _ = resolve(event, run_id=f"run-{number}")
        assert source.ref.commit == commit
        with pytest.raises(AirflowSkipException):
            resolve(event, run_id="another")
