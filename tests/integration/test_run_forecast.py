"""What a plan says is found is what the tasks find: real commits, a real store, real facts."""

from __future__ import annotations

import json

import pytest
from fixtures_git import Developer, file_developer, run_git  # noqa: F401
from typer.testing import CliRunner

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.adapters.stores import open_store
from deepseek_ops.core.errors import GitAccessError
from deepseek_ops.core.records import Checkpoint, DatasetVersion, FileSet, ModelVersion
from deepseek_ops.data import DatasetRepository
from deepseek_ops.data.blobs import StoreBlobs
from deepseek_ops.pipeline.datasets import prepare_job, raw_of
from deepseek_ops.pipeline.forecast import change_of_run, explain_plan, forecast
from deepseek_ops.pipeline.identity import content_identity, link_run, linked, made_before, remember_made
from deepseek_ops.pipeline.lineage_evidence import keep_evidence
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
        keep_evidence(self.store, run, plan, dataset=DATASET, run_id=name)
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
    assert stages["environment"].why.startswith("as at main (")
    assert stages["data"].why.startswith("found: dataset tiny version aaaaaaaaaaaa")
    assert stages["train"].runs
    assert "training of deepseek.yaml changed" in stages["train"].why
    assert "reuse data" in " ".join(text.split())
    assert made_before(team.facts, team.identity(run)) is None


def test_code_that_preparation_gets_makes_its_data_again(team):
    team.train(team.push(FILES))
    stages, _ = team.told(team.push({"deepseek/prepare.py": "def prepare_data(raw, out): raise\n"}, "exp/code"))
    assert stages["environment"].why.startswith("as at main (")
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


def quiet(monkeypatch, team):
    """Let the command see nothing but its arguments."""
    for name in ("STORE", "FACTS", "REPOSITORY", "GIT_TOKEN"):
        monkeypatch.delenv(f"DEEPSEEK_OPS_{name}", raising=False)
    monkeypatch.setenv("DEEPSEEK_OPS_CACHE", str(team.developer.bare.parent / "cache-of-the-command"))


def planned(*arguments):
    """Return what the command prints on stdout, its lines without their alignment, and all that it says."""
    from deepseek_ops.cli.main import build

    done = CliRunner().invoke(build(["plan"]), ["plan", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return [" ".join(line.split()) for line in done.stdout.splitlines()], done.output


def test_the_command_prints_the_plan_and_writes_nothing(team, monkeypatch):
    from deepseek_ops.cli.main import build

    team.train(team.push(FILES))
    team.push({"deepseek.yaml": PIPELINE.replace("seed: 1", "seed: 2")}, "exp/seed")
    before = sorted(info.key for info in team.store.list(""))
    arguments = ["plan", "--repo", str(team.developer.bare), "--ref", "exp/seed", "--against", "main"]
    where = ["--store", team.uri, "--facts", team.dsn]
    quiet(monkeypatch, team)
    done = CliRunner().invoke(build(arguments), [*arguments, *where], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "found: dataset tiny version aaaaaaaaaaaa" in done.output
    as_json = CliRunner().invoke(build(arguments), [*arguments, *where, "--json"], catch_exceptions=False)
    assert json.loads(as_json.stdout)["change"]["sections"] == ["training"]
    assert sorted(info.key for info in team.store.list("")) == before
    bare = CliRunner().invoke(build(arguments), arguments, catch_exceptions=False)
    assert bare.exit_code == 0
    assert "give --store and --facts" in bare.output


def test_in_a_clone_the_command_needs_no_option_whatever_the_default_branch_is_called(team, monkeypatch):
    quiet(monkeypatch, team)
    team.push(FILES, "trunk")
    run_git(team.developer.bare, "symbolic-ref", "HEAD", "refs/heads/trunk")
    docs = team.push({"README.md": "# Better\n"}, "exp/docs").manifest.source.commit
    team.push({"deepseek.yaml": PIPELINE.replace("seed: 1", "seed: 2")}, "exp/docs")
    team.developer.git("switch", "--quiet", "trunk")
    team.push({"deepseek/prepare.py": "def prepare_data(raw, out): raise\n"}, "trunk")
    monkeypatch.chdir(team.developer.folder)
    assert planned()[0][0].startswith("tiny: trunk at ")
    for name in (docs, docs[:9], f"exp/docs@{docs}"):
        lines, _ = planned("--ref", name)
        assert lines[0] == f"tiny: exp/docs at {docs[:12]}"
        assert lines[1].startswith("1 docs changed since where it left trunk ("), "what trunk did since is not its own"
    _, told = planned("--ref", "exp/docs", "--against", f"exp/docs@{docs}")
    assert f"1 pipeline changed since exp/docs ({docs[:12]})" in told
    assert f"1 pipeline changed since {docs[:12]}" in planned("--ref", "exp/docs", "--against", docs)[1]


def test_where_nothing_is_looked_up_nothing_is_told_to_be_found(team, monkeypatch):
    quiet(monkeypatch, team)
    team.push({**FILES, "deepseek.yaml": PIPELINE + "triggers: [{type: git-push, branches: [main, 'exp/*']}]\n"})
    team.push({"README.md": "# Better\n"}, "exp/docs")
    lines, _ = planned("--repo", str(team.developer.folder), "--ref", "exp/docs")
    assert lines[2] == "a push of it starts no run: it changes documentation only"
    verbs = {line.split()[1]: line.split()[0] for line in lines[3:-1]}
    assert {verbs[name] for name in ("environment", "data", "train", "validate", "export", "register")} == {"same"}
    both = ["--repo", str(team.developer.folder), "--ref", "exp/docs", "--store", team.uri, "--facts", team.dsn]
    looked, _ = planned(*both)
    assert next(line for line in looked if "what is to run is not asked for by the change" in line)
    assert "run data prepare corpus/ with deepseek.prepare:prepare_data as tiny" in looked
    body = json.loads("\n".join(planned(*both, "--json")[0]))
    assert body["push"]["starts"] is False
    other, _ = planned("--repo", str(team.developer.folder), "--ref", "exp/docs", "--against", "exp/docs")
    assert "starts a run: the git-push trigger for main, exp/* wants it" in other[2]


def test_results_of_another_machine_are_found_by_the_keys_of_that_machine(team, monkeypatch):
    from deepseek_ops.pipeline import environment_machine

    quiet(monkeypatch, team)
    workers = environment_machine.Machine(python="3.12", platform="linux-riscv64", libc="glibc-2.99")
    team.push(FILES)
    run = team.plan("main", machine=workers)
    assert run.manifest.environment != team.plan("main").manifest.environment
    team.train(run)
    lines, told = planned("--repo", str(team.developer.bare), "--ref", "main", "--store", team.uri, "--facts", team.dsn)
    assert [line.split()[0] for line in lines if line.split()[1] in ("data", "train", "register")] == ["reuse"] * 3
    assert "planned for Python 3.12 on linux-riscv64 with glibc-2.99, as the runs of these facts are" in told


@pytest.mark.parametrize("path", ["deepseek.yaml", "requirements.txt"])
def test_a_linked_pipeline_file_or_lock_is_told_as_a_link(team, monkeypatch, path):
    quiet(monkeypatch, team)
    developer = team.developer
    (developer.folder / "real").write_text(PIPELINE if path == "deepseek.yaml" else "numpy==2.0.0\n")
    (developer.folder / path).symlink_to("real")
    developer.push_commit({name: text for name, text in FILES.items() if name != path})
    with pytest.raises(GitAccessError, match=f"^{path} in commit .* is not a plain file but a symbolic link; commit"):
        planned("--repo", str(developer.bare))
