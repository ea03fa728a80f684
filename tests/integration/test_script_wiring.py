"""A pipeline file that names a script of its commit: the plan is that script's, and its job carries it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.core.config.reading import load_pipeline
from deepseek_ops.core.errors import ConfigError
from deepseek_ops.core.records import DatasetVersion, GitRef, RunManifest
from deepseek_ops.data import DatasetRepository, StoreBlobs
from deepseek_ops.pipeline.runs import RunPlan
from deepseek_ops.pipeline.trainings import training_job, training_plan
from deepseek_ops.training.script import TrainingScript, require_linked

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
