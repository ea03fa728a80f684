"""A run in Airflow that fails half-way: the review hears why, and the run stays failed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fixtures_airflow import copy_of_migrated_database
from fixtures_review_hosts import COMMIT, TOKEN, Host, github_app, serving

from deepseek_ops.core.records import GitRef
from deepseek_ops.pipeline.pushes import Source

DAG_FILE = """
import json
from pathlib import Path
import pendulum
from airflow.sdk import DAG, task
from deepseek_ops.airflow.operators.review import NOTE_FAILURE, ReportResultOperator, ReportStartedOperator
SOURCE = json.loads(Path(__file__).with_suffix(".json").read_text())
settings = {"retries": 0, "on_failure_callback": [NOTE_FAILURE]}
with DAG("review", schedule=None, start_date=pendulum.datetime(2026, 1, 1), default_args=settings) as dag:
    @task
    def resolve_source():
        return SOURCE
    @task
    def plan_run():
        return {"dry_run": False}
    @task
    def stages():
        return [1, 0]
    @task
    def evaluate(stage):
        if stage == 0:
            raise ValueError("accuracy 0.2 is below 0.9")
        return {}
    @task
    def register(done):
        return {"never": "reached"}
    source, run = resolve_source(), plan_run()
    done = evaluate.expand(stage=stages())
    version = register(done)
    @task
    def release(version):
        return None
    release(version)
    started = ReportStartedOperator(task_id="report_started", source=source, run=run, git_conn_id="deepseek_ops_git")
    result = ReportResultOperator(
        task_id="report_result", source=source, dataset=None, checkpoint=None, evaluations=[], version=version,
        recorded=version, git_conn_id="deepseek_ops_git",
    )
    run >> done
    started >> result
"""
CHILD = """
import sys
from airflow.dag_processing.dagbag import DagBag
run = DagBag(dag_folder=sys.argv[1]).dags["review"].test()
print("RUN", run.state, {ti.task_id: str(ti.state) for ti in run.get_task_instances() if ti.map_index < 0})
"""


def environment(home: Path, host: Host) -> dict[str, str]:
    settings = {"review": "github", "review_url": host.url}
    git = {"conn_type": "git", "host": "https://github.com/team/model", "password": TOKEN, "extra": settings}
    facts = {"conn_type": "deepseek_facts", "host": f"sqlite:///{home.parent}/facts.db"}
    return {
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__CORE__DAGS_FOLDER": str(home.parent / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW_CONN_DEEPSEEK_OPS_GIT": json.dumps(git),
        "AIRFLOW_CONN_DEEPSEEK_OPS_FACTS": json.dumps(facts),
    }


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_gate_that_fails_is_told_with_its_reason_and_fails_the_run(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    dags = tmp_path / "dags"
    dags.mkdir()
    ref = GitRef(repository="https://github.com/team/model", name="refs/heads/exp/lr", commit=COMMIT)
    (dags / "review.py").write_text(DAG_FILE)
    (dags / "review.json").write_text(json.dumps(Source(ref=ref).dump()))
    host = Host(pulls={7: ("open", [COMMIT])})
    with serving(github_app(host), host):
        env = environment(tmp_path / "airflow", host)
        copy_of_migrated_database(tmp_path_factory, tmp_path / "airflow")
        child = [sys.executable, "-c", CHILD, str(dags)]
        done = subprocess.run(child, env=env, capture_output=True, text=True, timeout=200, check=False)
    (line,) = [one for one in done.stdout.splitlines() if one.startswith("RUN")] or [done.stdout + done.stderr]
    assert line.startswith("RUN failed"), line
    assert "'report_result': 'success'" in line, line
    assert [one["state"] for one in host.statuses] == ["pending", "failure"]
    assert host.statuses[-1]["description"] == "evaluate failed: accuracy 0.2 is below 0.9"
    assert "below 0" in host.bodies(7)[0]
