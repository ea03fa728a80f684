"""Trials of a pipeline file that names a script: the script trains them, shorter, and its own metrics prune them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from fixtures_hf_scripts import TRAINER_SCRIPT
from fixtures_trainer import MODEL, dataset, lab  # noqa: F401  (pytest fixtures)
from fixtures_triggers import connect

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.airflow.operators.tuning import RunTrialOperator
from deepseek_ops.core.jobs import JobPhase
from deepseek_ops.core.records import Checkpoint, GitRef, RunManifest, Trial
from deepseek_ops.pipeline.interruptions import history_at
from deepseek_ops.pipeline.runs import RunPlan, config_of
from deepseek_ops.pipeline.sweeps import draw, settle, study_of
from deepseek_ops.training.streams import current, read

pytestmark = pytest.mark.slow
MODEL_JSON = json.dumps({**MODEL, "num_mtp_layers": 0})
PIPELINE = {
    "name": "tiny",
    "training": {
        "script": {
            "path": "train.py",
            "args": [
                *("--data", "{dataset}/documents/train.jsonl", "--tokenizer", "{dataset}/tokenizer"),
                *("--model", MODEL_JSON, "--rate", "{learning_rate}", "--steps", "{max_steps}"),
            ],
        },
        "hyperparameters": {"learning_rate": [0.01, 0.005], "epochs": 2},
    },
    "sweep": {"max_steps": 12, "sampler": "random"},
}


@pytest.fixture
def run(lab, tmp_path, monkeypatch):  # noqa: F811
    connect(monkeypatch, "deepseek_ops_store", conn_type="deepseek_store", host=lab.store.uri)
    connect(monkeypatch, "deepseek_ops_facts", conn_type="deepseek_facts", host=f"sqlite:///{tmp_path / 'facts.db'}")
    connect(monkeypatch, "deepseek_ops_launcher", conn_type="deepseek_launcher", host=str(lab.root))
    code = tmp_path / "code"
    (code / "deepseek").mkdir(parents=True)
    (code / "deepseek" / "model.json").write_text(MODEL_JSON)
    (code / "train.py").write_text(TRAINER_SCRIPT)
    blobs = lab.blobs
    manifest = RunManifest(
        name="tiny",
        source=GitRef(repository="https://host/team/model", name="refs/heads/main", commit="a" * 40),
        tree="b" * 40,
        config_digest=blobs.put(json.dumps(PIPELINE).encode()),
        environment="e",
        software="1",
    )
    return RunPlan(manifest=manifest, code=blobs.put(json.dumps(blobs.put_folder(code).dump()).encode()))


def trial_of(run, dataset, number: int) -> tuple[Any, Trial]:  # noqa: F811
    task = RunTrialOperator(task_id="trial", run=run.dump(), dataset=dataset.dump(), number=number)
    task.poll_seconds = 0.1
    return task, Trial.load(task.execute({"run_id": "r", "ti": None}))


def test_a_script_trains_short_trials_that_its_own_metrics_prune(lab, dataset, run, tmp_path):  # noqa: F811
    facts = open_facts(f"sqlite:///{tmp_path / 'facts.db'}")
    task, trial = trial_of(run, dataset, 0)
    assert (trial.state, [step for step, _ in trial.curve]) == ("complete", [6, 12])
    assert trial.objective == trial.curve[-1][1] > 0
    name = task.job({}).name
    checkpoint = Checkpoint.load(lab.launcher.result(name))
    assert (checkpoint.step, checkpoint.model.files) == (12, ()), "shorter than the training, and without a model"
    rows = current([row for segment in read(lab.store, f"runs/{trial.plan}/metrics") for row in segment.rows])
    assert rows[0]["learning_rate"] == pytest.approx(trial.values["learning_rate"])
    assert "SCRIPT ENDED 12" in lab.launcher.logs(name)[0]
    seconds = lab.launcher.status(name).wall_seconds
    assert history_at(facts, "deepseek_ops_launcher").machine_seconds == pytest.approx(seconds)

    longer = run.evolve(manifest=run.manifest.evolve(overrides={"sweep.max_steps": 5000}))
    config = config_of(lab.blobs, longer.manifest)
    study = study_of(config, longer, dataset, json.loads(MODEL_JSON))
    rival = draw(facts, config, study, 1, run="r")
    settle(facts, study, rival.evolve(state="complete", objective=0.01, curve=((6, 0.01), (12, 0.01))))
    task, pruned = trial_of(longer, dataset, 0)
    assert (pruned.state, pruned.curve[0][0]) == ("pruned", 6)
    assert pruned.objective == pruned.curve[-1][1]
    status = lab.launcher.status(task.job({}).name)
    assert status.phase is JobPhase.STOPPED
    assert "pruned by asha" in status.reason
    assert status.step < 5000
    assert [info.key for info in lab.store.list(f"runs/{pruned.plan}/") if "/checkpoints/" in info.key] == []
    work = lab.root / "jobs" / status.name / "work"
    assert [str(path) for path in work.rglob("*") if path.name.startswith(("checkpoint-", "step-"))] == []
