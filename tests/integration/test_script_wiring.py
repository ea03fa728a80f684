"""A pipeline file that names a script of its commit: the plan is that script's, and its job carries it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.core.config.reading import load_pipeline
from deepseek_ops.core.errors import ConfigError
from deepseek_ops.core.records import (
    DatasetVersion,
    FileSet,
    GitRef,
    Hyperparameters,
    RunManifest,
    TrainingPlan,
    Trial,
)
from deepseek_ops.data import DatasetRepository, StoreBlobs
from deepseek_ops.pipeline.runs import RunPlan
from deepseek_ops.pipeline.sweeps import study_of, trial_job, trial_plan
from deepseek_ops.pipeline.trainings import training_job, training_plan
from deepseek_ops.training.script import TrainingScript, arguments, require_linked

TEXT = """
name: tiny
training:
  script: {path: train.py, args: [--data, "{dataset}", --lr, "{learning_rate}"]}
"""
DATASET = DatasetVersion(name="corpus", version="d" * 64, tree="f" * 64, num_files=1, num_bytes=1)


def run_of(blobs: StoreBlobs, folder: Path, **files: str) -> RunPlan:
    for name, text in files.items():
        (folder / name.replace("_", ".")).write_text(text)
    code = blobs.put(json.dumps(blobs.put_folder(folder).dump()).encode())
    ref = GitRef(repository="https://host/team/model", name="refs/heads/main", commit="a" * 40)
    manifest = RunManifest(
        name="tiny", source=ref, tree="b" * 40, config_digest="c" * 64, environment="e", software="1"
    )
    return RunPlan(manifest=manifest, code=code)


def test_the_scripts_bytes_decide_the_plan_and_travel_with_the_job(tmp_path: Path) -> None:
    store, config = LocalStore(tmp_path / "store"), load_pipeline(TEXT, file="deepseek.yaml")
    blobs, datasets = StoreBlobs(store), DatasetRepository(store)
    plans, folder = [], tmp_path / "code"
    folder.mkdir()
    for text in ("print(1)\n", "print(2)\n"):
        run = run_of(blobs, folder, train_py=text)
        plan = training_plan(
            config, run, dataset=DATASET, model={"model_type": "llama"}, values={}, datasets=datasets, blobs=blobs
        )
        script = TrainingScript.load(training_job(config, run, plan, blobs=blobs).payload["script"])
        require_linked(plan, script)
        assert (script.path, script.args[-1]) == ("train.py", "{learning_rate}")
        plans.append(plan.fingerprint)
    assert plans[0] != plans[1]


def test_trials_are_the_scripts_too_and_their_study_is_of_its_bytes(tmp_path: Path) -> None:
    searched = {"training.hyperparameters": {"learning_rate": [0.1, 0.2], "bias_update_rate": [0.01]}}
    args = {"training.script.args": ["--lr={learning_rate}", "--steps", "{max_steps}"], "sweep.max_steps": 8}
    config = load_pipeline(TEXT, file="deepseek.yaml").with_overrides({**searched, **args})
    store, model, values = LocalStore(tmp_path / "store"), {"model_type": "llama"}, {"learning_rate": 0.2}
    blobs, folder, seen = StoreBlobs(store), tmp_path / "code", set()
    folder.mkdir()
    for text in ("print(1)\n", "print(2)\n"):
        run = run_of(blobs, folder, train_py=text)
        trial = Trial(study="s", number=0, values={**values, "bias_update_rate": 0.01})
        plan = trial_plan(config, run, DATASET, model, trial, blobs=blobs)
        job = trial_job(config, run, plan, blobs=blobs)
        script = TrainingScript.load(job.payload["script"])
        require_linked(plan, script)
        assert (plan.purpose, script.bias_update_rate) == ("trial", 0.01)
        assert arguments(script, plan, {}) == ["--lr=0.2", "--steps", "8"]
        final = training_plan(
            config,
            run,
            dataset=DATASET,
            model=model,
            values=trial.values,
            datasets=DatasetRepository(store),
            blobs=blobs,
        )
        told = TrainingScript.load(training_job(config, run, final, blobs=blobs).payload["script"])
        assert told == script, "the best trial's values are used in the training that they were found in"
        assert arguments(told, final, {}) == ["--lr=0.2", "--steps", "-1"], "epochs decide the training's length"
        seen |= {job.name, study_of(config, run, DATASET, model).name}
    assert len(seen) == 4


def test_a_script_is_told_both_lengths_and_when_to_evaluate(tmp_path: Path) -> None:
    script = TrainingScript(code=FileSet(files=()), path="t.py", args=("{epochs} {max_steps} {eval_steps} {other}",))
    told = [
        arguments(script, TrainingPlan(dataset=DATASET, model={}, hyperparameters=length, eval_steps=3), {})
        for length in (
            Hyperparameters(learning_rate=1, batch_size=1, epochs=2),
            Hyperparameters(learning_rate=1, batch_size=1, max_steps=7),
        )
    ]
    assert told == [["2.0 -1 3 {other}"], ["1.0 7 3 {other}"]]


def test_a_script_that_is_not_in_the_commit_is_refused_by_key(tmp_path: Path) -> None:
    store, config = LocalStore(tmp_path / "store"), load_pipeline(TEXT, file="deepseek.yaml")
    (tmp_path / "code").mkdir()
    run = run_of(StoreBlobs(store), tmp_path / "code", other_py="")
    with pytest.raises(ConfigError, match=r"training.script.path.*train.py"):
        training_plan(
            config,
            run,
            dataset=DATASET,
            model={"model_type": "llama"},
            values={},
            datasets=DatasetRepository(store),
            blobs=StoreBlobs(store),
        )
