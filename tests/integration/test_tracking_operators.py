"""The task that mirrors a training: live, with a real MLflow, and harmless where there is none or it is away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from airflow.sdk.exceptions import AirflowSkipException, TaskDeferred
from fixtures_mlflow import mlflow_url  # noqa: F401
from fixtures_wandb import offline_run

from deepseek_ops.adapters import rest
from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.adapters.stores import open_store
from deepseek_ops.airflow.operators.tracking import MirrorMetricsOperator
from deepseek_ops.airflow.triggers import tracking as trigger_module
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import DatasetVersion, GitRef, Hyperparameters, RunManifest, TrainingPlan
from deepseek_ops.core.reporting import ServiceUnavailableError
from deepseek_ops.pipeline.runs import RunPlan
from deepseek_ops.pipeline.tracking import tracker_url

REF = GitRef(repository="https://host/team/model", name="refs/heads/exp/lr", commit="a" * 40)
MANIFEST = RunManifest(
    name="tiny-live", source=REF, tree="b" * 40, config_digest="c" * 64, environment="e", software="1"
)
DATASET = DatasetVersion(name="corpus", version="d" * 64, tree="f" * 64, num_files=1, num_bytes=1)
PLAN = TrainingPlan(
    dataset=DATASET, model={"model_type": "deepseek_v3"}, hyperparameters=Hyperparameters(learning_rate=1, batch_size=8)
)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ObjectStore]:
    connect(monkeypatch, "deepseek_store", f"file://{tmp_path}/store", "STORE")
    connect(monkeypatch, "deepseek_facts", f"sqlite:///{tmp_path}/facts.db", "FACTS")
    monkeypatch.setattr(rest, "TRIES", 1)
    return open_store(f"file://{tmp_path}/store", {})


def connect(monkeypatch: pytest.MonkeyPatch, kind: str, host: str, name: str, **extra: str) -> None:
    body = {"conn_type": kind, "host": host, "extra": extra}
    monkeypatch.setenv(f"AIRFLOW_CONN_DEEPSEEK_OPS_{name}", json.dumps(body))


def segment(store: ObjectStore, number: int, steps: range) -> None:
    rows = [{"step": step, "training_loss": 10.0 - step} for step in steps]
    body = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    store.create(f"{PLAN.run_prefix}/metrics/{number:06d}.jsonl", body)


def operator() -> MirrorMetricsOperator:
    run = RunPlan(manifest=MANIFEST, code="1" * 64)
    return MirrorMetricsOperator(
        task_id="mirror_metrics", run=run.dump(), dataset=DATASET.dump(), plan=PLAN.dump(), poll_seconds=0.05
    )


def context(try_number: int = 1) -> Any:
    ti = SimpleNamespace(dag_id="retrain", task_id="mirror_metrics", run_id="run-1", try_number=try_number, max_tries=3)
    return {"ti": ti, "run_id": "run-1"}


def test_without_a_tracker_the_task_is_skipped(store: ObjectStore) -> None:
    with pytest.raises(AirflowSkipException, match="no connection deepseek_ops_tracker"):
        operator().execute(context())


def test_a_tracker_with_a_wrong_address_is_skipped_and_said(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, "deepseek_tracker", "mlflow", "TRACKER")
    with pytest.raises(AirflowSkipException, match="no http"):
        operator().execute(context())


def test_a_tracker_that_is_away_neither_stops_the_wait_nor_fails_the_run(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect(monkeypatch, "deepseek_tracker", "http://127.0.0.1:9", "TRACKER")
    segment(store, 0, range(3))
    with pytest.raises(TaskDeferred):
        operator().execute(context())
    with pytest.raises(ServiceUnavailableError):
        operator().execute_complete(context(), {"state": "success", "after": -1, "step": -1})
    with pytest.raises(AirflowSkipException, match="clear this task to send the rest"):
        operator().execute_complete(context(try_number=4), {"state": "success", "after": -1, "step": -1})


@pytest.mark.parametrize(
    ("host", "extra", "said"),
    [("runs", {"tracker": "wandb"}, "no absolute folder"), ("/runs", {"tracker": "aim"}, "aim")],
)
def test_a_tracker_connection_that_cannot_work_names_its_field(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, host: str, extra: dict[str, str], said: str
) -> None:
    connect(monkeypatch, "deepseek_tracker", host, "TRACKER", **extra)
    with pytest.raises(AirflowSkipException, match=said):
        operator().execute(context())


@pytest.mark.slow
def test_an_offline_run_of_wandb_has_the_whole_curve_and_the_commit_leads_to_it(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    connect(monkeypatch, "deepseek_tracker", str(tmp_path / "runs"), "TRACKER", tracker="wandb", entity="team")
    segment(store, 0, range(3))
    with pytest.raises(TaskDeferred):
        operator().execute(context())
    segment(store, 1, range(3, 5))
    told = operator().execute_complete(context(), {"state": "success", "after": -1, "step": -1})
    assert told["url"] == tracker_url(open_facts(f"sqlite:///{tmp_path}/facts.db"), "run-1")
    assert told["url"] == f"https://wandb.ai/team/tiny-live/runs/{told['run_id']}"
    (folder,) = (tmp_path / "runs" / "wandb").iterdir()
    seen = offline_run(folder)
    assert seen["curves"]["training_loss"] == [(step, 10.0 - step) for step in range(5)]
    assert (seen["status"], seen["tags"]["deepseek_ops.commit"]) == ("finished", "a" * 40)


@pytest.mark.slow
async def test_metrics_arrive_while_the_training_runs_and_whole_when_it_ends(
    store: ObjectStore,
    monkeypatch: pytest.MonkeyPatch,
    mlflow_url: str,  # noqa: F811
    tmp_path: Path,
) -> None:
    connect(monkeypatch, "deepseek_tracker", mlflow_url, "TRACKER")
    api = httpx.Client(base_url=f"{mlflow_url}/api/2.0/mlflow", timeout=30)
    with pytest.raises(TaskDeferred) as deferred:
        operator().execute(context())
    url = tracker_url(open_facts(f"sqlite:///{tmp_path}/facts.db"), "run-1")
    run_id = url.rpartition("/")[2]
    lengths: list[int] = []

    def steps() -> list[int]:
        asked = {"run_id": run_id, "metric_key": "training_loss", "max_results": 1000}
        rows = api.get("/metrics/get-history", params=asked).json().get("metrics", [])
        return sorted(int(row.get("step", 0)) for row in rows)

    def state(dag_id: str, run: str, task_id: str) -> str:
        assert (dag_id, run, task_id) == ("retrain", "run-1", "train")
        lengths.append(len(steps()))
        if len(lengths) <= 3:
            segment(store, len(lengths), range(len(lengths) * 5, len(lengths) * 5 + 5))
            return "deferred"
        return "success"

    monkeypatch.setattr(trigger_module, "task_state", state)
    path, arguments = deferred.value.trigger.serialize()
    module, _, name = path.rpartition(".")
    rebuilt = getattr(import_module(module), name)(**json.loads(json.dumps(arguments)))
    (event,) = [event async for event in rebuilt.run()]
    assert lengths == [0, 5, 10, 15]
    segment(store, 9, range(20, 22))
    told = operator().execute_complete(context(), json.loads(json.dumps(event.payload)))
    assert told == {"tracker": "mlflow", "run_id": run_id, "url": url}
    assert steps() == list(range(5, 22))
    run = api.get("/runs/get", params={"run_id": run_id}).json()["run"]  # noqa: ASYNC212  (nothing else runs here)
    assert run["info"]["status"] == "FINISHED"
    assert {"key": "mlflow.source.git.commit", "value": "a" * 40} in run["data"]["tags"]
