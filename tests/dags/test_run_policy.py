"""Runs in Airflow itself: one that may not go on ends as skipped, with its reason, and fails nothing."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures_airflow import copy_of_migrated_database
from fixtures_git import Developer, file_developer  # noqa: F401

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.core.records import GitRef
from deepseek_ops.pipeline.policy import Turn, enter, lane_key, lane_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PIPELINE = """
name: tiny
triggers: [{type: git-push, branches: [main], concurrency: supersede}]
data: {raw: corpus/, prepare: "deepseek.prepare:prepare_data"}
training:
  model: deepseek/model.json
  hyperparameters: [{name: learning_rate, value: 0.001}, {name: batch_size, value: 8}, {name: max_steps, value: 10}]
"""
CHILD = """
import json, sys
from airflow.dag_processing.dagbag import DagBag
dag = DagBag(dag_folder=sys.argv[1]).dags["retrain"]
for task in dag.tasks:
    task.retries = 0
run = dag.test(run_conf=json.loads(sys.argv[2]))
states = {ti.task_id: str(ti.state) for ti in run.get_task_instances()}
print("STATES", json.dumps({"run": str(run.state), "run_id": run.run_id, "tasks": states}))
"""


@pytest.fixture
def airflow(tmp_path, tmp_path_factory, file_developer: Developer):  # noqa: F811
    home = tmp_path / "airflow"
    project = Path(__file__).parents[2]
    connections = {
        "deepseek_ops_git": {"conn_type": "git", "host": f"file://{file_developer.bare}"},
        "deepseek_ops_store": {"conn_type": "deepseek_store", "host": f"file://{tmp_path / 'store'}"},
        "deepseek_ops_facts": {"conn_type": "deepseek_facts", "host": f"sqlite:///{tmp_path / 'facts.db'}"},
        "deepseek_ops_launcher": {"conn_type": "deepseek_launcher", "host": str(tmp_path / "jobs")},
    }
    environment = {
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__CORE__DAGS_FOLDER": str(project / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "DEEPSEEK_OPS_PRELOAD": "",  # nothing is trained here
        **{f"AIRFLOW_CONN_{name.upper()}": json.dumps(fields) for name, fields in connections.items()},
    }
    copy_of_migrated_database(tmp_path_factory, home)

    def run(conf):
        dags = str(project / "dags")
        done = subprocess.run(
            [sys.executable, "-c", CHILD, dags, json.dumps(conf)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
        )
        line = next((line for line in done.stdout.splitlines() if line.startswith("STATES ")), None)
        assert line, done.stdout[-4000:] + done.stderr[-4000:]
        return json.loads(line.removeprefix("STATES ")), done.stdout + done.stderr

    return run


def test_dry_superseded_and_unwanted_runs_end_without_a_failure(airflow, file_developer, tmp_path):  # noqa: F811
    commit = file_developer.push_commit(
        {
            "deepseek.yaml": PIPELINE,
            "deepseek/prepare.py": "def prepare_data(raw, out): ...\n",
            "deepseek/model.json": "{}",
            "corpus/a.txt": "text\n",
        }
    )
    dry, output = airflow({"ref": "main", "dry_run": True})
    assert (dry["run"], dry["tasks"]["await_turn"], dry["tasks"]["prepare_dataset"]) == (
        "success",
        "success",
        "skipped",
    )
    assert "nothing to compare with" in output

    facts = open_facts(f"sqlite:///{tmp_path / 'facts.db'}")
    ref = GitRef(repository=file_developer.remote.url, name="refs/heads/main", commit=commit)
    later = (dt.datetime.now(dt.UTC) + dt.timedelta(days=1)).isoformat(timespec="microseconds")
    enter(facts, lane_key(ref), Turn(run="newer", commit=f"{2:040x}", order=later, policy="supersede"))
    older, output = airflow({"ref": f"main@{commit}", "cause": "push"})
    assert older["run"] == "success"
    done = {task for task, state in older["tasks"].items() if state == "success"}
    assert done <= {"resolve_source", "other_pushes", "plan_run"}
    assert set(older["tasks"].values()) <= {"success", "skipped"}
    assert f"superseded by {2:040x}" in output
    assert lane_of(facts, lane_key(ref)).turn(older["run_id"]).state == "superseded"


def test_a_queued_run_does_not_wait_for_a_run_that_airflow_does_not_know_any_more(airflow, file_developer, tmp_path):  # noqa: F811
    queued = PIPELINE.replace("supersede", "queue").replace("corpus/", "nowhere/")  # ends at its data
    commit = file_developer.push_commit({"deepseek.yaml": queued, "deepseek/model.json": "{}"})
    facts = open_facts(f"sqlite:///{tmp_path / 'facts.db'}")
    ref = GitRef(repository=file_developer.remote.url, name="refs/heads/main", commit=commit)
    enter(facts, lane_key(ref), Turn(run="deleted", commit=f"{2:040x}", order="2026-01-01", policy="parallel"))
    run, output = airflow({"ref": f"main@{commit}", "cause": "push"})
    assert run["tasks"]["await_turn"] == "success"
    assert run["tasks"]["prepare_dataset"] == "failed"
    assert "queue: goes on" in output
    assert [turn.state for turn in lane_of(facts, lane_key(ref)).turns] == ["ended", "active"]
