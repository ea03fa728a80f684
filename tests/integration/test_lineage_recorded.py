"""Without facts and without a named registry, a record in Git still leads to its result; a branch to its newest one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fixtures_git import run_git
from fixtures_lineage import World, make_world
from typer.testing import CliRunner

from deepseek_ops.cli.main import build
from deepseek_ops.pipeline.experiments import experiments_of
from deepseek_ops.pipeline.lineage_records import Lineage


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Two results on main, a better one on exp/a, and a clone that has fetched all of it."""
    world = make_world(tmp_path_factory.mktemp("recorded"))
    data = world.dataset(["one", "two"])
    developer = world.developer
    world.run("run-1", world.push(), data, loss=2.0)
    developer.git("pull", "--quiet", "origin", "main")
    world.run("run-2", world.push(code="x = 2\n"), data, loss=1.8)
    developer.git("pull", "--quiet", "origin", "main")
    commit = world.push(branch="exp/a", code="x = 3\n", learning_rate=0.002)
    world.run("run-3", commit, data, branch="exp/a", loss=1.5, learning_rate=0.002)
    developer.push_commit({"empty.txt": "x"}, "empty")
    developer.git("switch", "--quiet", "--orphan", "none")
    developer.push_commit({"none.txt": "x"}, "none")
    developer.git("switch", "--quiet", "main")
    developer.git("fetch", "--quiet", "--tags", "origin")
    return world


@pytest.fixture
def command(recorded: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Run a command that is told nothing but the store and the clone."""
    for name in ("STORE", "FACTS", "REGISTRY", "GIT_TOKEN"):
        monkeypatch.delenv(f"DEEPSEEK_OPS_{name}", raising=False)
    monkeypatch.setenv("DEEPSEEK_OPS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(recorded.developer.folder)

    def run(*arguments: str, store: str = recorded.stores.uri):
        call = [*arguments, "--store", store, "--repo", "."]
        return CliRunner().invoke(build(call), call)

    return run


def tag_of(world: World, run: str) -> str:
    known = experiments_of(world.developer.remote.record_texts())
    return next(one.tags[0] for one in known if one.record.run_id == run)


@pytest.mark.parametrize("named", ["tag", "run", "trained commit", "record's commit"])
def test_a_record_in_git_leads_to_the_whole_result_without_facts_or_registry(recorded: World, command, named: str):
    tag = tag_of(recorded, "run-2")
    targets = {
        "tag": tag,
        "run": "run-2",
        "trained commit": recorded.runs["run-2"].manifest.source.commit[:10],
        "record's commit": recorded.developer.git("rev-parse", f"{tag}^{{commit}}"),
    }
    done = command("why", targets[named], "--json")
    assert done.exit_code == 0, done.output
    told = Lineage.load(json.loads(done.stdout))
    assert (told.model, told.version, told.run) == ("tiny", "0.2.0", "run-2")
    assert told.link("gates").details["stages"][0]["verdict"] == "pass"
    assert told.link("hyperparameters").details["values"]["learning_rate"] == 0.001


def test_a_branch_is_its_newest_experiment_with_and_without_facts(recorded: World, command):
    for more in ((), ("--facts", f"sqlite:///{recorded.folder}/facts.db")):
        done = command("diff", "main", "exp/a", *more)
        assert done.exit_code == 0, done.output
        lines = done.stdout.splitlines()
        assert lines[0] == "tiny 0.2.0 (run run-2) -> tiny 0.3.0 (run run-3)"
        assert lines[1].strip() == "Beyond chance: val_loss (quick-check) is better."
        assert any(line.split()[:2] == ["moved", "config"] for line in lines)
    assert "branch empty, its newest experiment" in command("why", "empty").stdout


def test_a_branch_without_an_experiment_says_so(command):
    done = command("why", "none")
    assert done.exit_code == 1
    assert "branch none of file://" in str(done.exception)
    assert "has no recorded experiment" in str(done.exception)


def test_where_the_registry_is_gone_the_store_explains_and_the_record_tells_the_metrics(recorded: World, command):
    registry = recorded.folder / "registry"
    registry.rename(recorded.folder / "away")
    try:
        done = command("why", "run-3")
        compared = command("diff", "run-2", "run-3")
    finally:
        (recorded.folder / "away").rename(registry)
    assert done.exit_code == compared.exit_code == 0, done.output
    assert "tiny 0.3.0 (run run-3, by its record in Git: no registry that was asked has a version of it)" in done.stdout
    assert "val_loss 1.5, as the record in Git has it" in done.stdout
    assert "learning_rate 0.002" in done.stdout
    assert "moved   config" in compared.stdout
    assert "val_loss: 1.8 -> 1.5" in compared.stdout


def test_where_the_store_is_another_one_too_the_record_itself_is_told(recorded: World, command, tmp_path: Path):
    registry = recorded.folder / "registry"
    registry.rename(recorded.folder / "away")
    try:
        done = command("why", "run-3", store=f"file://{tmp_path}/other")
        compared = command("diff", "run-2", "run-3", store=f"file://{tmp_path}/other")
    finally:
        (recorded.folder / "away").rename(registry)
    assert done.exit_code == 0, done.output
    assert "val_loss 1.5, as the record in Git has it" in done.stdout
    assert recorded.runs["run-3"].manifest.source.commit[:12] in done.stdout
    assert "learning_rate 0.002" in done.stdout
    assert compared.exit_code == 0, compared.output
    assert "val_loss: 1.8 -> 1.5" in compared.stdout
    assert "unknown config " in compared.stdout


def test_a_note_leads_to_the_training_by_its_manifest(recorded: World, command, tmp_path: Path):
    """Where bots may not commit there is no result file: the store's own record of the training is looked for."""
    tag = tag_of(recorded, "run-1")
    message = run_git(recorded.developer.bare, "tag", "-l", "--format=%(contents)", tag)
    bare = tmp_path / "noted.git"
    run_git(tmp_path, "clone", "--quiet", "--bare", str(recorded.developer.bare), str(bare))
    for name in run_git(bare, "tag").splitlines():
        run_git(bare, "tag", "-d", name)
    commit = recorded.runs["run-1"].manifest.source.commit
    run_git(bare, "update-ref", "refs/heads/main", commit)
    for name in ("exp/a", "empty", "none"):
        run_git(bare, "branch", "-D", name)
    run_git(bare, "notes", "--ref=deepseek-ops", "add", "-m", message, commit)
    recorded.developer.git("remote", "set-url", "origin", str(bare))
    try:
        done = command("why", "run-1")
        alone = command("why", "run-1", store=f"file://{tmp_path}/other")
        compared = command("diff", "run-1", "run-1", store=f"file://{tmp_path}/other")
    finally:
        recorded.developer.git("remote", "set-url", "origin", str(recorded.developer.bare))
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("tiny 0.1.0 (run run-1)")
    assert alone.exit_code == 0, alone.output
    assert f"commit {commit[:12]}" in alone.stdout
    assert "? only the record in Git was found; give the --store" in alone.stdout
    assert "val_loss 2, as the record in Git has it" in alone.stdout
    assert "only its record in Git was found, which names no parts to compare" in str(compared.exception)
