"""What a trial's events say, and that a study lives in the facts alone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.core.config import load_pipeline
from deepseek_ops.core.records import (
    Checkpoint,
    DatasetVersion,
    FileEntry,
    FileSet,
    GitRef,
    ReplayPlan,
    RunManifest,
    Trial,
)
from deepseek_ops.data import StoreBlobs
from deepseek_ops.pipeline.changes import ChangeSummary
from deepseek_ops.pipeline.forecast import explain_plan
from deepseek_ops.pipeline.once import job_name, remember, remembered
from deepseek_ops.pipeline.runs import RunPlan, Stage
from deepseek_ops.pipeline.sweeps import (
    NoTrialCompletedError,
    best_trial,
    draw,
    settle,
    study_of,
    trial_job,
    trial_plan,
    trials_of,
)
from deepseek_ops.pipeline.trainings import training_job
from deepseek_ops.pipeline.trials import diverged, measured, objective, trial_curve
from deepseek_ops.training import plan_training

EXAMPLE = Path(__file__).parents[2] / "include" / "examples" / "tiny-deepseek" / "deepseek.yaml"
MODEL = {"model_type": "deepseek_v3", "hidden_size": 64, "vocab_size": 512}
DATASET = DatasetVersion(name="corpus", version="a" * 64, tree="b" * 64, num_files=1, num_bytes=1)


@pytest.fixture
def facts(tmp_path):
    return open_facts(f"sqlite:///{tmp_path / 'facts.db'}")


@pytest.fixture
def blobs(tmp_path):
    return StoreBlobs(LocalStore(tmp_path / "store"))


@pytest.fixture
def config():
    return load_pipeline(EXAMPLE.read_text(), file="deepseek.yaml")


@pytest.fixture
def run():
    manifest = RunManifest(
        name="deepseek-tiny",
        source=GitRef(repository="https://host/m.git", name="refs/heads/exp/a", commit="1" * 40),
        tree="2" * 40,
        config_digest="3" * 64,
        environment="env",
        software="0.1.0",
    )
    return RunPlan(manifest=manifest, code="4" * 64, stages=(Stage(name="data", runs=False, why="dry run"),))


def test_the_curve_is_in_step_order_and_a_repeated_step_counts_once():
    events = [
        {"kind": "metric", "step": 20, "val_loss": 5.0},
        {"kind": "metric", "step": 10, "val_loss": 6.0},
        {"kind": "metric", "step": 20, "val_loss": 4.5},
        {"kind": "metric", "step": 30, "training_loss": 1.0},
        {"kind": "metric", "step": 40, "val_loss": "NaN"},
        {"kind": "checkpoint", "step": 25},
    ]
    assert trial_curve(events, metric="val_loss") == ((10, 6.0), (20, 4.5))


def test_a_trial_without_a_finite_metric_has_no_objective():
    checkpoint = Checkpoint(plan="c" * 64, step=1, tokens=1, model=FileSet(files=()), metrics={"val_loss": 4.0})
    assert objective(checkpoint, metric="val_loss") == 4.0
    assert objective(checkpoint, metric="accuracy") is None


def test_a_trial_whose_steps_never_measured_the_metric_is_told_from_one_whose_metric_was_not_finite():
    checkpoint = Checkpoint(plan="c" * 64, step=1, tokens=1, model=FileSet(files=()), metrics={"training_loss": 4.0})
    rows = [{"kind": "metric", "step": 1, "training_loss": 4.0}, {"kind": "event", "val_loss": 1.0}]
    assert not measured(rows, checkpoint, metric="val_loss")
    assert measured([*rows, {"kind": "metric", "step": 2, "val_loss": "NaN"}], checkpoint, metric="val_loss")
    assert measured(rows, checkpoint.evolve(metrics={"val_loss": 1.0}), metric="val_loss")
    assert measured([], checkpoint, metric="val_loss"), "a result of long ago, whose steps are not known any more"


def test_only_a_training_that_cannot_recover_counts_as_diverged():
    assert diverged([{"kind": "alert", "action": "stop", "step": 3}])
    assert diverged([{"kind": "failed", "error": "DivergedError"}])
    assert not diverged([{"kind": "alert", "action": "record"}])
    assert not diverged([{"kind": "failed", "error": "LocalDiskError"}, {"kind": "ended"}])


def test_slots_that_draw_at_the_same_moment_get_different_values(facts, config, run):
    study = study_of(config, run, DATASET, MODEL)
    assert study.trials == 4
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: draw(facts, config, study, number, run="r"), range(study.trials)))
    trials = trials_of(facts, study)
    assert [trial.number for trial in trials] == [0, 1, 2, 3]
    assert len(trials) == 4


def test_a_slot_that_is_drawn_again_has_the_values_it_had(facts, config, run):
    study = study_of(config, run, DATASET, MODEL)
    first = draw(facts, config, study, 0, run="r1")
    assert draw(facts, config, study, 0, run="r2") == first
    done = settle(facts, study, first.evolve(state="complete", objective=4.0))
    assert settle(facts, study, first.evolve(state="failed")) == done, "a settled trial is left as it is"


def test_another_seed_of_the_final_training_is_the_same_study(config, run):
    study = study_of(config, run, DATASET, MODEL)
    assert study_of(config.with_overrides({"training.seed": 99}), run, DATASET, MODEL) == study
    assert study_of(config.with_overrides({"sweep.max_steps": 99}), run, DATASET, MODEL) != study
    assert study_of(config, run, DATASET.evolve(version="c" * 64), MODEL) != study


def trial_job_of(config, run, blobs, **values):
    trial = Trial(study="s", number=0, values={"learning_rate": 0.002, **values})
    return trial_job(config, run, trial_plan(config, run, DATASET, MODEL, trial, blobs=blobs), blobs=blobs)


def test_a_trial_of_another_final_seed_is_the_same_job(config, run, blobs):
    jobs = {trial_job_of(config.with_overrides({"training.seed": seed}), run, blobs).name for seed in (1, 2)}
    assert len(jobs) == 1


def test_a_trial_of_an_incremental_training_goes_on_from_the_base_as_the_training_does(config, run, blobs):
    keys = {"training.base": "model://tiny/champion", "training.replay": 0.25, "sweep.max_steps": 8}
    incremental = config.with_overrides(keys)
    weights = FileSet(files=(FileEntry(path="model.safetensors", size=1, digest="e" * 64),))
    old = DATASET.evolve(version="f" * 64)
    based = run.evolve(manifest=run.manifest.evolve(base="d" * 64), base=weights, base_dataset=old.version)
    values = {"learning_rate": 0.002}
    trial = Trial(study="s", number=0, values=values)
    plan = trial_plan(incremental, based, DATASET, MODEL, trial, replayed=(old,), blobs=blobs)
    final = plan_training(incremental, dataset=DATASET, model=MODEL, values=values, base=weights, base_datasets=(old,))
    assert plan.base == final.base == weights
    assert (plan.rewarm, plan.replay) == (final.rewarm, final.replay) == (0.5, ReplayPlan(datasets=(old,), share=0.25))
    assert (plan.purpose, plan.hyperparameters.max_steps) == ("trial", 8)
    moved = based.evolve(manifest=run.manifest.evolve(base="c" * 64))
    assert study_of(incremental, based, DATASET, MODEL) != study_of(incremental, moved, DATASET, MODEL)


def test_with_how_few_machines_a_training_goes_on_is_its_job_s_and_changes_neither_weights_nor_study(config, run):
    elastic = config.with_overrides({"training.engine": "ray", "training.nodes": 2, "training.min_nodes": 1})
    rigid = config.with_overrides({"training.engine": "ray", "training.nodes": 2})
    jobs = [
        training_job(one, run, plan_training(one, dataset=DATASET, model=MODEL, values={"learning_rate": 0.002}))
        for one in (elastic, rigid)
    ]
    assert [(job.num_nodes, job.min_nodes) for job in jobs] == [(2, 1), (2, None)]
    assert jobs[0].name == jobs[1].name
    assert study_of(elastic, run, DATASET, MODEL) == study_of(rigid, run, DATASET, MODEL)


def test_a_sweep_without_a_finished_trial_says_what_became_of_them(config, run):
    study = study_of(config, run, DATASET, MODEL)
    trials = [Trial(study=study.name, number=0, state="failed"), Trial(study=study.name, number=1, state="complete")]
    with pytest.raises(NoTrialCompletedError, match="#0 failed, #1 complete"):
        best_trial(config, study, trials)


def test_a_result_is_remembered_by_everything_that_decides_it(facts, config, run, blobs):
    job = trial_job_of(config, run, blobs)
    assert remembered(facts, job) is None
    remember(facts, job, {"value": 1}, run="r")
    remember(facts, job, {"value": 2}, run="r")
    assert remembered(facts, job) == {"value": 1}
    names = {
        job_name("export", {"a": 1}, environment="x"),
        job_name("export", {"a": 2}, environment="x"),
        job_name("export", {"a": 1}, environment="y"),
        job_name("prepare", {"a": 1}, environment="x"),
    }
    assert len(names) == 4


def test_the_plan_explains_what_is_skipped_and_why(run):
    assert "skip  data" in explain_plan(run, ChangeSummary())
    assert "dry run" in explain_plan(run, ChangeSummary())
