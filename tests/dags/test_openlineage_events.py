"""OpenLineage events of our tasks in a real Airflow run, and that it costs nothing without the provider."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from fixtures_airflow import copy_of_migrated_database
from fixtures_lineage import World, world
from jsonschema import Draft202012Validator

from deepseek_ops.core.records import FileSet, GitRef
from deepseek_ops.pipeline.lineage_evidence import find_evidence
from deepseek_ops.pipeline.runs import RunPlan
from deepseek_ops.web.lineage_pages import manifest_facet_schema

__all__ = ["world"]

DAG_FILE = """
import json, os
from pathlib import Path
import pendulum
from airflow.sdk import DAG
from deepseek_ops.airflow.operators.registry import RegisterModelOperator
from deepseek_ops.airflow.operators.release import CreateReleaseOperator
given = json.loads(Path(__file__).with_suffix(".json").read_text())
with DAG("lineage", schedule=None, start_date=pendulum.datetime(2026, 1, 1)) as dag:
    version = RegisterModelOperator(
        task_id="register", run=given["run"], dataset=given["dataset"], checkpoint=given["checkpoint"],
        evaluations=[], exports=[],
    )
    CreateReleaseOperator(task_id="release", version=version.output, git_conn_id="deepseek_ops_git")
"""
CHILD = """
import sys
from airflow.dag_processing.dagbag import DagBag
run = DagBag(dag_folder=sys.argv[1]).dags["lineage"].test()
print("STATES", {ti.task_id: str(ti.state) for ti in run.get_task_instances()})
"""


@pytest.fixture
def given(world: World) -> dict[str, Any]:
    """What a run hands to its registration."""
    dataset = world.dataset(["one", "two"])
    known = world.run("run-1", world.push(), dataset, record=False)
    bundle = world.registry.read_bundle(known.version)
    evidence = find_evidence(world.stores.at(world.stores.uri), bundle.checkpoint.plan, known.manifest)
    assert evidence is not None
    run = RunPlan(manifest=known.manifest.evolve(dataset="", seed=5), code=evidence.code, lock=evidence.lock)
    return {"run": run.dump(), "dataset": dataset.dump(), "checkpoint": bundle.checkpoint.dump()}


def environment(world: World, home: Path, events: Path) -> dict[str, str]:
    connections = {
        "deepseek_ops_git": {"conn_type": "git", "host": f"file://{world.developer.bare}"},
        "deepseek_ops_store": {"conn_type": "deepseek_store", "host": world.stores.uri},
        "deepseek_ops_facts": {"conn_type": "deepseek_facts", "host": f"sqlite:///{world.folder}/facts.db"},
    }
    transport = {"type": "file", "log_file_path": str(events), "append": True}
    return {
        **os.environ,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home}/airflow.db",
        "AIRFLOW__CORE__DAGS_FOLDER": str(home.parent / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(transport),
        "AIRFLOW__OPENLINEAGE__NAMESPACE": "tests",
        "AIRFLOW__OPENLINEAGE__EXECUTION_TIMEOUT": "60",
        **{f"AIRFLOW_CONN_{name.upper()}": json.dumps(fields) for name, fields in connections.items()},
    }


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_in_airflow_emits_versions_commit_and_manifest(
    world: World, given: dict[str, Any], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
):
    events, dags = tmp_path / "events.jsonl", tmp_path / "dags"
    dags.mkdir()
    (dags / "lineage.py").write_text(DAG_FILE)
    (dags / "lineage.json").write_text(json.dumps(given))
    env = environment(world, tmp_path / "airflow", events)
    copy_of_migrated_database(tmp_path_factory, tmp_path / "airflow")
    child = [sys.executable, "-c", CHILD, str(dags)]
    done = subprocess.run(child, env=env, capture_output=True, text=True, timeout=200, check=False)
    assert "STATES {'register': 'success', 'release': 'success'}" in done.stdout, (
        done.stdout[-3000:] + done.stderr[-3000:]
    )
    told = [json.loads(line) for line in events.read_text().splitlines()]
    complete = {event["job"]["name"]: event for event in told if event["eventType"] == "COMPLETE"}
    registered = complete["lineage.register"]
    inputs = {
        one["name"].rpartition("/main/")[2]: one["facets"]["version"]["datasetVersion"] for one in registered["inputs"]
    }
    assert inputs["refs/heads/corpus"] == given["dataset"]["version"]
    assert inputs[f"runs/{given['checkpoint']['plan']}"] == FileSet.load(given["checkpoint"]["model"]).fingerprint
    (model,) = registered["outputs"]
    assert model["name"].endswith("/registry/tiny")
    assert model["facets"]["version"]["datasetVersion"] == "0.2.0"
    source = GitRef.load(given["run"]["manifest"]["source"])
    location = registered["job"]["facets"]["sourceCodeLocation"]
    assert (location["version"], location["branch"], location["repoUrl"]) == (source.commit, "main", source.repository)
    facet = registered["run"]["facets"]["deepseekOps_runManifest"]
    assert facet["manifest"]["dataset"] == given["dataset"]["version"]
    assert facet["_schemaURL"].endswith("/deepseek-ops/lineage/schema/RunManifest-1.json")
    Draft202012Validator(manifest_facet_schema()).validate(facet)
    (tag,) = complete["lineage.release"]["outputs"]
    assert (tag["namespace"], tag["name"]) == (source.repository, "deepseek-v0.2.0")
    assert len(tag["facets"]["version"]["datasetVersion"]) == 40


def extracted(operator: Any, result: dict[str, Any]) -> Any:
    from airflow.providers.openlineage.extractors.base import DefaultExtractor

    from deepseek_ops.airflow.operators.base import keep_result

    keep_result({"task": operator}, result)
    return DefaultExtractor(operator).extract_on_complete(None)


def test_each_step_tells_what_it_read_and_wrote(world: World, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch):
    from deepseek_ops.airflow.operators.data import PrepareDatasetOperator
    from deepseek_ops.airflow.operators.training import DeepSpeedTrainOperator
    from deepseek_ops.airflow.operators.validation import EvaluateOperator

    store = json.dumps({"conn_type": "deepseek_store", "host": world.stores.uri})
    monkeypatch.setenv("AIRFLOW_CONN_DEEPSEEK_OPS_STORE", store)
    known = world.runs["run-1"]
    bundle = world.registry.read_bundle(known.version)
    evidence = find_evidence(world.stores.at(world.stores.uri), bundle.checkpoint.plan, known.manifest)
    trained = extracted(
        DeepSpeedTrainOperator(task_id="train", run=given["run"], plan=evidence.plan.dump()), given["checkpoint"]
    )
    assert [one.facets["version"].datasetVersion for one in trained.inputs] == [given["dataset"]["version"]]
    assert [one.name.rpartition("/main/")[2] for one in trained.outputs] == [f"runs/{bundle.checkpoint.plan}"]
    evaluate = EvaluateOperator(
        task_id="evaluate", run=given["run"], dataset=given["dataset"], checkpoint=given["checkpoint"], stage={}
    )
    seen = extracted(evaluate, bundle.evaluations[0].dump())
    assert len(seen.inputs) == 2
    assert seen.outputs[0].name.endswith("/evaluations/quick-check")
    prepared = world.dataset(["x"], raw={"dataset": "corpus-raw", "version": "a" * 64})
    told = extracted(PrepareDatasetOperator(task_id="prepare", run=given["run"]), prepared.dump())
    assert told.inputs[0].name.endswith("/refs/heads/corpus-raw")
    assert told.inputs[0].facets["version"].datasetVersion == "a" * 64
    assert told.outputs[0].facets["version"].datasetVersion == prepared.version


def test_without_the_provider_nothing_of_it_is_imported():
    code = (
        "import sys; from deepseek_ops.airflow.operators import registry, release, training, data, validation; "
        "parts = ('openlineage.', 'airflow.providers.openlineage.extractors', 'deepseek_ops.airflow.openlineage'); "
        "bad = [name for name in sys.modules if name.startswith(parts)]; print(bad); sys.exit(bool(bad))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stdout
