"""``why`` tells the whole chain, from all sources or from those that are left."""

from __future__ import annotations

import json

import pytest
from fixtures_lineage import World, make_world
from typer.testing import CliRunner

from deepseek_ops.cli.main import build
from deepseek_ops.core.records import Phase, Rollout
from deepseek_ops.pipeline.deployments import ROLLOUT, RolloutState
from deepseek_ops.pipeline.lineage import explain
from deepseek_ops.pipeline.lineage_records import PARTS, Lineage
from deepseek_ops.pipeline.lineage_targets import UnknownTargetError
from deepseek_ops.pipeline.lineage_text import lineage_text
from deepseek_ops.pipeline.releases import create_release


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A first model, and a second one on top of it that was approved, released and rolled out."""
    world = make_world(tmp_path_factory.mktemp("lineage"))
    data = world.dataset(["one", "two"])
    first = world.run("run-1", world.push(), data, loss=2.0)
    world.developer.git("fetch", "--quiet", "origin", "main")
    world.developer.git("reset", "--quiet", "--hard", "origin/main")
    commit = world.push(code="x = 2\n")
    second = world.run("run-2", commit, world.dataset(["one", "two", "three"]), base=first.bundle, loss=1.5)
    create_release(world.developer.remote, world.stores, world.facts, second, approved_by="Grace")
    world.registry.set_alias("tiny", "champion", "0.1.0", actor="rollout", reason="first")
    world.registry.set_alias("tiny", "champion", "0.2.0", actor="rollout", reason="all steps held")
    rollout = Rollout(
        endpoint="tiny", stable="0.1.0", candidate="0.2.0", strategy="canary", steps=(50, 100), percent=100,
        phase=Phase.PROMOTED, reason="all steps held",
    )  # fmt: skip
    world.facts.insert(ROLLOUT, "tiny/0.2.0/deploy-1", RolloutState(rollout=rollout).dump())
    return world


def test_the_chain_of_a_champion_is_told_with_nothing_missing_but_the_installed_packages(released: World):
    told = explain(released.sources(), "tiny")
    assert (told.model, told.version, told.run) == ("tiny", "0.2.0", "run-2")
    assert [link.part for link in told.links] == list(PARTS)
    missing = {link.part: link.missing for link in told.links if link.missing}
    assert list(missing) == ["environment"], missing
    code, data = told.link("code"), told.link("data")
    assert code.details["found_by"] == "commit"
    assert "refs/heads/main" in code.details["reached_by"]
    assert code.details["files"] == 5
    assert data.details["splits"] == {"train": 3}
    assert data.details["prepared_by"] == "deepseek.prepare:prepare_data"
    assert data.details["checks"] == {"verdict": "pass"}
    chosen = told.link("hyperparameters")
    assert chosen.details["values"]["learning_rate"] == 0.001
    assert chosen.summary == "trial #2 of 4 of study tiny-123 with 1.5"
    assert told.link("gates").details["stages"][0]["verdict"] == "pass"
    assert told.link("exports").summary == "safetensors verified"
    assert told.link("release").details["approved_by"] == "Grace"
    assert "promoted: all steps held; champion since" in told.link("rollout").summary
    assert told.link("cost").details["usd"] == 0.25
    assert told.degraded == ()
    assert told.base is not None
    assert (told.base.version, told.base.run, told.base.base) == ("0.1.0", "run-1", None)


@pytest.mark.parametrize(
    ("target", "version"),
    [
        ("tiny@0.1.0", "0.1.0"),
        ("tiny@v0.2.0", "0.2.0"),
        ("tiny@champion", "0.2.0"),
        ("run-1", "0.1.0"),
        ("exp-tag", "0.1.0"),
        ("deepseek-v0.2", "0.2.0"),
        ("commit", "0.1.0"),
        ("experiment-commit", "0.1.0"),
        ("short-commit", "0.1.0"),
    ],
)
@pytest.mark.parametrize("facts", [True, False])
def test_every_name_of_a_result_leads_to_it_with_and_without_facts(
    released: World, target: str, version: str, facts: bool
):
    first = released.runs["run-1"]
    tags = released.developer.remote.refs(("refs/tags/*",))
    names = {
        "commit": first.manifest.source.commit,
        "short-commit": first.manifest.source.commit[:8],
        "exp-tag": next(tag for tag in tags if first.manifest.fingerprint[:8] in tag).removeprefix("refs/tags/"),
        "deepseek-v0.2": next(tag for tag in tags if "exp-" not in tag).removeprefix("refs/tags/"),
    }
    names["experiment-commit"] = tags[f"refs/tags/{names['exp-tag']}"]
    told = explain(released.sources(facts=facts), names.get(target, target))
    assert told.version == version


def test_without_facts_the_store_and_git_still_tell_the_chain_and_say_what_they_cannot(released: World):
    told = explain(released.sources(facts=False), "tiny@0.2.0")
    assert told.run == "run-2"
    assert told.link("release").details["approved_by"] == "Grace"
    assert told.link("release").details["told_by"] == "the tag in Git"
    assert "champion since" in told.link("rollout").summary
    assert told.link("cost").missing == ("costs are facts alone, and there are none",)
    assert any("steps of rollouts" in problem for problem in told.link("rollout").missing)
    assert told.base.version == "0.1.0"
    assert "no database of facts" in told.degraded[0]


def test_without_git_the_code_is_still_in_the_store_and_the_silence_is_named(released: World):
    told = explain(released.sources(git=False), "run-2")
    assert told.link("code").details["files"] == 5
    assert "in no repository that was asked" in told.link("code").missing[0]
    assert any("no repository was opened" in problem for problem in told.degraded)


def test_a_dataset_version_that_was_collected_is_said_and_not_guessed(released: World):
    store = released.stores.at(released.stores.uri)
    key = f"commits/{released.runs['run-2'].manifest.dataset}"
    body = store.get(key)
    store.delete([key])
    data = explain(released.sources(), "tiny@0.2.0").link("data")
    assert data.details == {}
    assert released.runs["run-2"].manifest.dataset in data.missing[0]
    store.put_blob(key, body)


def test_a_name_that_nobody_knows_is_one_clear_error(released: World):
    with pytest.raises(UnknownTargetError, match=r"'nothing' is no model, model@version"):
        explain(released.sources(), "nothing")


def test_hostile_text_from_git_cannot_reach_the_terminal(released: World):
    told = explain(released.sources(), "tiny")
    hostile = told.links[1].evolve(summary="main\x1b[2J\nfake line")
    text = lineage_text(told.evolve(links=(hostile,), base=None))
    assert "\x1b" not in text
    assert "\\x1b[2J\\nfake line" in text


def test_the_command_prints_text_for_people_and_json_for_programs(released: World):
    options = ["--store", released.stores.uri, "--facts", f"sqlite:///{released.folder}/facts.db"]
    text = CliRunner().invoke(build(["why"]), ["why", "tiny", *options], catch_exceptions=False).stdout
    for words in ("tiny 0.2.0 (model tiny, champion), run run-2", "approved by Grace", "trained on top of (base 1):"):
        assert words in text
    output = CliRunner().invoke(build(["why"]), ["why", "run-1", *options, "--json"], catch_exceptions=False).stdout
    assert Lineage.load(json.loads(output)).version == "0.1.0"
