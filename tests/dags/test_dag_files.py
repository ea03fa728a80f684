"""Every DAG file: it loads, it is documented, and loading it imports nothing heavy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
DAG_FILES = sorted((PROJECT / "dags").glob("*.py"))
HEAVY = ("torch", "deepspeed", "transformers", "optuna", "boto3", "pandas", "onnx", "onnxruntime", "datasets")


@pytest.fixture(scope="module")
def dagbag():
    from airflow.dag_processing.dagbag import DagBag

    return DagBag(dag_folder=str(PROJECT / "dags"))


def test_every_dag_file_loads(dagbag):
    assert dagbag.import_errors == {}
    assert set(dagbag.dags) == {path.stem for path in DAG_FILES}


@pytest.mark.parametrize("dag_id", [path.stem for path in DAG_FILES])
def test_every_dag_says_what_it_is_and_who_owns_it(dagbag, dag_id):
    dag = dagbag.dags[dag_id]
    assert len(dag.doc_md or "") > 80
    assert "deepseek-ops" in dag.tags
    assert dag.default_args["owner"] != "airflow"
    assert dag.default_args["retries"] >= 2
    assert all(parameter.description for _, parameter in dag.params.items())


def test_every_task_alerts_and_asks_the_retry_policy(dagbag):
    for dag in dagbag.dags.values():
        for task in dag.tasks:
            policy = getattr(task, "retry_policy", None) or task.partial_kwargs.get("retry_policy")
            assert policy is not None, f"{dag.dag_id}.{task.task_id}"
            assert task.on_failure_callback, f"{dag.dag_id}.{task.task_id}"


def test_loading_the_dags_imports_nothing_heavy():
    # The first asset makes Airflow load what its installed providers bring for asset URIs, boto3 with Amazon's.
    code = (
        "import sys\n"
        "from airflow.sdk import Asset\n"
        "Asset(name='first', uri='deepseek-ops://first')\n"
        "before = set(sys.modules)\n"
        "from airflow.dag_processing.dagbag import DagBag\n"
        f"bag = DagBag(dag_folder={str(PROJECT / 'dags')!r})\n"
        "assert not bag.import_errors, bag.import_errors\n"
        f"print([name for name in {HEAVY!r} if name in set(sys.modules) - before])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"


def test_serialising_a_dag_twice_gives_the_same(dagbag):
    from airflow.serialization.serialized_objects import DagSerialization

    for dag in dagbag.dags.values():
        assert DagSerialization.serialize_dag(dag) == DagSerialization.serialize_dag(dag), dag.dag_id


def test_the_graph_of_retrain_is_the_path_from_push_to_release(dagbag):
    dag = dagbag.dags["retrain"]
    order = [task.task_id for task in dag.topological_sort()]
    path = [
        "resolve_source",
        "plan_run",
        "proceed",
        "prepare_dataset",
        "plan_sweep",
        "run_trial",
        "plan_training",
        "train",
        "evaluate",
        "require_pass",
        "export",
        "register",
        "record_experiment",
        "release_wanted",
        "start_release",
    ]
    assert [task for task in order if task in path] == path
