"""What a plan says is found is what the tasks find: real commits, a real store, real facts."""

from __future__ import annotations

import json

import pytest
from fixtures_git import Developer, file_developer  # noqa: F401
from typer.testing import CliRunner

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.adapters.stores import open_store
from deepseek_ops.core.records import Checkpoint, DatasetVersion, FileSet, ModelVersion
from deepseek_ops.data import DatasetRepository
from deepseek_ops.data.blobs import StoreBlobs
from deepseek_ops.pipeline.datasets import prepare_job, raw_of
from deepseek_ops.pipeline.forecast import change_of_run, explain_plan, forecast
from deepseek_ops.pipeline.identity import content_identity, link_run, linked, made_before, remember_made
from deepseek_ops.pipeline.once import remember
from deepseek_ops.pipeline.runs import code_of, config_of, plan_run
from deepseek_ops.pipeline.trainings import model_config, training_job, training_plan

PIPELINE = """
name: tiny
jobs: {setup: {container: "image:1"}}
data: {raw: corpus/, prepare: "deepseek.prepare:prepare_data"}
training:
  model: deepseek/model.json
  seed: 1
  hyperparameters: [{name: learning_rate, value: 0.001}, {name: batch_size, value: 8}, {name: max_steps, value: 10}]
"""
FILES = {
    "deepseek.yaml": PIPELINE,
    "deepseek/prepare.py": "def prepare_data(raw, out): ...\n",
    "deepseek/model.json": json.dumps({"model_type": "deepseek_v3", "vocab_size": 512}),
    "corpus/a.txt": "text\n",
    "README.md": "# Model\n",
}
DATASET = DatasetVersion(name="tiny", version="a" * 64, tree="b" * 64, num_files=2, num_bytes=9, splits={"train": 1})


class Team:
    """A repository, a store and facts, and what the tasks of a run leave there."""

    def __init__(self, developer: Developer, folder) -> None:
        self.developer, self.git = developer, developer.remote
        self.uri = f"file://{folder / 'store'}"
        self.dsn = f"sqlite:///{folder / 'facts.db'}"
        self.store = open_store(self.uri, {})
        self.blobs = StoreBlobs(self.store)
        self.datasets = DatasetRepository.open(self.store)
        self.facts = open_facts(self.dsn)

    def at(self, uri):
        return open_store(uri, {})

    def push(self, files, branch="main"):
        self.developer.push_commit(files, branch)
        return self.plan(branch)

    def plan(self, branch, **more):
        resolved = self.git.resolve(branch)
        return plan_run(self.git, self.blobs, resolved, resolve_base=lambda _config: None, overrides={}, **more)

    def told(self, run, against=""):
        config = config_of(self.blobs, run.manifest)
        change = change_of_run(self.git, run, config, against=against)
        told = forecast(
            self.git,
            run,
            change,
            stores=self,
            datasets=self.datasets,
            facts=self.facts,
            against=against,
        )
        return {stage.name: stage for stage in told.stages}, explain_plan(told, change)

    def train(self, run, name="run-1"):
        """Leave what the tasks of a run leave: the results of its jobs, and the version's identity."""
        config = config_of(self.blobs, run.manifest)
        job = prepare_job(config, run, self.blobs, raw_of(config, run, self, self.datasets), self.datasets)
        remember(self.facts, job, {"dataset": DATASET.dump()}, run=name)
        plan = training_plan(
            config,
            run,
            dataset=DATASET,
            model=model_config(self.blobs, config, run),
            values={},
            datasets=self.datasets,
            blobs=self.blobs,
        )
        checkpoint = Checkpoint(plan=plan.fingerprint, step=10, tokens=10, model=FileSet(files=()))
        remember(self.facts, training_job(config, run, plan), checkpoint.dump(), run=name)
        version = ModelVersion(
            name="tiny", version="0.1.0", bundle="c" * 64, bundle_key="v0.1.0/bundle.json", manifest=run.manifest
        )
        return remember_made(self.facts, self.identity(run), version, run=name)

    def identity(self, run):
        return content_identity(config_of(self.blobs, run.manifest), run, code_of(self.blobs, run), DATASET)


@pytest.fixture
def team(file_developer, tmp_path):  # noqa: F811
    return Team(file_developer, tmp_path)


def test_before_anything_was_trained_every_stage_runs(team):
    stages, text = team.told(team.push(FILES))
    assert [name for name in ("environment", "data", "train", "register") if not stages[name].runs] == []
    assert "nothing to compare with" in text


def test_documentation_alone_finds_everything_and_is_the_same_content(team):
    first = team.push(FILES)
    made = team.train(first)
    run = team.push({"README.md": "# Better\n", "docs/a.txt": "b"}, "exp/docs")
    stages, text = team.told(run)
    assert {name for name in ("environment", "data", "train", "register") if stages[name].runs} == set()
    assert "documentation only" in text
    assert "tiny 0.1.0, trained by run run-1" in stages["register"].why
    assert made_before(team.facts, team.identity(run)) == made
    assert run.manifest.tree != first.manifest.tree


def test_another_hyperparameter_reuses_data_and_environment_and_trains(team):
    team.train(team.push(FILES))
    run = team.push({"deepseek.yaml": PIPELINE.replace("seed: 1", "seed: 2")}, "exp/seed")
    stages, text = team.told(run, against="main")
    assert stages["environment"].why.startswith("found: ")
    assert stages["data"].why.startswith("found: dataset tiny version aaaaaaaaaaaa")
    assert stages["train"].runs
    assert "training of deepseek.yaml changed" in stages["train"].why
    assert "reuse data" in " ".join(text.split())
    assert made_before(team.facts, team.identity(run)) is None


def test_code_that_preparation_gets_makes_its_data_again(team):
    team.train(team.push(FILES))
    stages, _ = team.told(team.push({"deepseek/prepare.py": "def prepare_data(raw, out): raise\n"}, "exp/code"))
    assert stages["environment"].why.startswith("found: ")
    assert stages["data"].runs
    assert "code changed (deepseek/prepare.py)" in stages["data"].why
    assert stages["train"].runs


def test_another_image_makes_everything_again(team):
    team.train(team.push(FILES))
    stages, _ = team.told(team.push({"deepseek.yaml": PIPELINE.replace("image:1", "image:2")}, "exp/image"))
    assert stages["environment"].runs
    assert stages["data"].runs
    assert "jobs of deepseek.yaml changed" in stages["environment"].why


def test_training_again_is_no_reuse_of_the_training(team):
    team.train(team.push(FILES))
    again = team.plan("main", nonce="manual__2")
    stages, _ = team.told(again)
    assert stages["data"].why.startswith("found: ")
    assert stages["train"].runs
    assert made_before(team.facts, team.identity(again)) is None


def test_a_trigger_or_a_budget_is_no_other_content(team):
    made = team.train(team.push(FILES))
    text = PIPELINE.replace("  seed: 1", "  seed: 1\n  budget: {usd: 3}") + "triggers: [{type: git-push}]\n"
    assert made_before(team.facts, team.identity(team.push({"deepseek.yaml": text}, "exp/budget"))) == made


def test_a_link_is_kept_once(team):
    made = team.train(team.push(FILES))
    link_run(team.facts, "run-2", made)
    link_run(team.facts, "run-2", made)
    assert linked(team.facts, "run-2") == made
    assert linked(team.facts, "run-1") is None


def test_the_command_prints_the_plan_and_writes_nothing(team, monkeypatch):
    from deepseek_ops.cli.main import build

    team.train(team.push(FILES))
    team.push({"deepseek.yaml": PIPELINE.replace("seed: 1", "seed: 2")}, "exp/seed")
    before = sorted(info.key for info in team.store.list(""))
    arguments = ["plan", "--repo", str(team.developer.bare), "--ref", "exp/seed", "--against", "main"]
    where = ["--store", team.uri, "--facts", team.dsn]
    monkeypatch.delenv("DEEPSEEK_OPS_STORE", raising=False)
    done = CliRunner().invoke(build(arguments), [*arguments, *where], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "found: dataset tiny version aaaaaaaaaaaa" in done.output
    as_json = CliRunner().invoke(build(arguments), [*arguments, *where, "--json"], catch_exceptions=False)
    assert json.loads(as_json.stdout)["change"]["sections"] == ["training"]
    assert sorted(info.key for info in team.store.list("")) == before
    bare = CliRunner().invoke(build(arguments), arguments, catch_exceptions=False)
    assert bare.exit_code == 0
    assert "give --store and --facts" in bare.output
