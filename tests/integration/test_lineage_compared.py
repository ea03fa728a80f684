"""``diff`` says what moved between two results, with texts and uncertainty, and concludes no more than follows."""

from __future__ import annotations

import json

import pytest
from fixtures_lineage import World, make_world, world
from typer.testing import CliRunner

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.cli.main import build
from deepseek_ops.core.environments import ResolvedEnvironment, ResolvedPackage
from deepseek_ops.core.records import canonical_json
from deepseek_ops.pipeline.environment_records import RUN_ENVIRONMENT
from deepseek_ops.pipeline.lineage_diff import LineageDiff, NothingToCompareError, compare
from deepseek_ops.pipeline.lineage_diff_text import diff_text
from deepseek_ops.pipeline.lineage_moves import MAX_LINES, Move
from deepseek_ops.pipeline.once import RESULT

__all__ = ["world"]


def part(diff: LineageDiff, name: str) -> Move:
    return next(move for move in diff.moves if move.part == name)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> World:
    """One base run, and runs that differ from it in one part each, or in two."""
    world = make_world(tmp_path_factory.mktemp("compared"))
    first = world.push()
    data = world.dataset(["one", "two"])
    world.run("old", first, data, record=False)
    world.run("seed", first, data, seed=1, loss=2.001, record=False)
    world.run("hardware", first, data, hardware="1x8 ranks, engine local", record=False)
    more = world.dataset(["one", "two", "three", "four"])
    world.run("data", first, more, loss=1.9, record=False)
    code = world.push(code="x = 2\ny = 3\n")
    world.run("code", code, data, loss=2.1, record=False)
    both = world.push(code="x = 2\ny = 3\n", learning_rate=0.01)
    world.run("code-config-data", both, more, learning_rate=0.01, loss=1.7, record=False)
    docs = world.developer.push_commit({"README.md": "words\n"}, branch="docs")
    world.developer.git("switch", "--quiet", "main")
    world.run("docs", docs, more, learning_rate=0.01, loss=1.7, branch="docs", seed=5, record=False)
    return world


@pytest.mark.parametrize("moved", ["seed", "hardware", "data", "code"])
def test_one_part_that_moved_is_named_alone(runs: World, moved: str):
    assert compare(runs.sources(), "old", moved).moved == (moved,)


def test_data_that_moved_alone_explains_a_difference_beyond_chance(runs: World):
    diff = compare(runs.sources(), "old", "data")
    data = part(diff, "data")
    assert data.details["files"] == {"added": [], "removed": [], "modified": ["documents/train.jsonl"]}
    assert "records 2 added, 0 removed, 0 changed" in data.summary
    delta = next(one for one in diff.deltas if one.stage == "quick-check")
    assert delta.items == 60
    assert delta.interval is not None
    assert delta.interval[0] < -0.1 < delta.interval[1] < 0
    assert diff.conclusion[0] == "Beyond chance: val_loss (quick-check) is better."
    assert diff.conclusion[1].startswith("Only data moved: it alone explains a difference beyond chance")


@pytest.mark.parametrize(
    ("metric", "declared", "said"),
    [
        ("rouge_l", "metric: rouge_l\n  direction: maximize", "rouge_l (quick-check) is better"),
        ("disagreement", "metric: disagreement\n  direction: minimize", "disagreement (quick-check) is worse"),
        ("top1_accuracy", "confidence: 0.9", "top1_accuracy (quick-check) is better"),
        ("perplexity", "confidence: 0.9", "perplexity (quick-check) is worse"),
        ("recall", "confidence: 0.9", "recall (quick-check) moved up"),
        ("disagreement", "confidence: 0.9", "disagreement (quick-check) moved up"),
    ],
)
def test_better_is_what_is_declared_and_a_metric_of_nobody_only_moved(
    world: World, metric: str, declared: str, said: str
):
    world.push()
    place = world.developer.folder / "deepseek.yaml"
    text = place.read_text().replace("validation:\n", f"validation:\n  {declared}\n")
    commit = world.developer.push_commit({"deepseek.yaml": text})
    data = world.dataset(["a"])
    world.run("old", commit, data, loss=0.2, metric=metric, record=False)
    world.run("new", commit, data, loss=0.6, metric=metric, seed=1, record=False)
    assert compare(world.sources(), "old", "new").conclusion[0] == f"Beyond chance: {said}."


def test_parts_that_moved_together_are_told_to_be_confounded(runs: World):
    diff = compare(runs.sources(), "old", "code-config-data")
    assert diff.moved == ("data", "code", "config")
    assert "3 parts moved together (data, code, config): their effects are confounded." in diff.conclusion[1]
    assert "the old run with only code of tiny" in diff.conclusion[1]
    code, config = part(diff, "code"), part(diff, "config")
    assert [line for line in code.text if line[0] in "+-"][2:] == ["-x = 1", "+x = 2", "+y = 3"]
    assert config.summary == "learning_rate 0.001 -> 0.01"
    assert any(line.strip() == "+    - {name: learning_rate, value: 0.01}" for line in config.text)


def test_a_seed_that_moved_is_a_spread_and_no_cause(runs: World):
    said = compare(runs.sources(), "old", "seed").conclusion
    assert said[1] == "Only the seed moved: the difference is the spread of this training, not a cause."


def test_equal_results_leave_nothing_to_explain(runs: World):
    said = compare(runs.sources(), "old", "hardware").conclusion
    assert said[0] == "No metric moved beyond chance (1 with an interval): there is nothing to explain."


def test_a_metric_that_was_measured_once_says_why_it_has_no_interval(runs: World):
    diff = compare(runs.sources(), "old", "code")
    training = next(one for one in diff.deltas if one.metric == "training_loss")
    assert training.interval is None
    assert training.note == "measured once, at the end of training: nothing pairs"
    assert "no interval: measured once" in diff_text(diff)


def test_documentation_that_moved_is_named_and_is_no_move(runs: World):
    diff = compare(runs.sources(), "code-config-data", "docs")
    assert diff.moved == ("seed",)
    assert part(diff, "code").details["paths"] == {"docs": ["README.md"]}
    assert "no code moved" in part(diff, "code").summary


def test_code_is_compared_from_git_when_the_store_has_no_copy(runs: World):
    sources = runs.sources()
    store = runs.stores.at(runs.stores.uri)
    kept = {info.key: store.get(info.key) for info in store.list("runs/") if "/lineage/" in info.key}
    store.delete(list(kept))
    try:
        code = part(compare(sources, "old", "code"), "code")
    finally:
        for key, data in kept.items():
            store.create(key, data)
    assert code.details["compared_in"] == "git"
    assert [line for line in code.text if line[0] in "+-"][2:] == ["-x = 1", "+x = 2", "+y = 3"]


def test_without_facts_the_same_parts_are_told(runs: World):
    whole, left = compare(runs.sources(), "old", "code"), compare(runs.sources(facts=False), "tiny@0.1.0", "tiny@0.5.0")
    assert whole.moved == left.moved == ("code",)
    assert whole.deltas == left.deltas
    assert left.degraded


def test_packages_that_were_installed_are_compared_not_only_the_key(runs: World):
    for run, version in (("old", "1.0"), ("seed", "2.0")):
        packages = {"numpy": ResolvedPackage(version=version)}
        resolved = ResolvedEnvironment(packages=packages, python="CPython 3.11.9", platform="linux")
        digest = runs.stores.blobs.put(canonical_json(resolved.dump()))
        runs.facts.insert(RUN_ENVIRONMENT, f"{run}/train-1", {"environment": digest, "job": "train-1"}, run=run)
    try:
        diff = compare(runs.sources(), "old", "seed")
    finally:
        runs.facts = open_facts(f"sqlite:///{runs.folder}/facts.db")
    assert diff.moved == ("environment", "seed")
    assert "~ numpy 1.0 -> 2.0" in part(diff, "environment").summary


def test_test_sets_that_share_documents_are_paired_on_those(world: World):
    commit = world.push()
    texts = [f"document {number}" for number in range(60)]
    old = world.dataset(["a"], test=texts)
    new = world.dataset(["a", "b"], test=[*texts[:40], *(f"changed {number}" for number in range(20))])
    world.run("old", commit, old, selection=f"{old.version}:test:all", record=False)
    world.run("new", commit, new, selection=f"{new.version}:test:all", loss=1.5, record=False)
    delta = next(one for one in compare(world.sources(), "old", "new").deltas if one.stage)
    assert delta.items == 40
    assert "over the 40 documents that both test sets hold" in delta.note


def test_test_sets_without_a_common_document_give_no_interval_and_the_reason(world: World):
    commit = world.push()
    old, new = world.dataset(["a"], test=["one"] * 60), world.dataset(["a"], test=["two"] * 60)
    world.run("old", commit, old, selection=f"{old.version}:test:all", record=False)
    world.run("new", commit, new, selection=f"{new.version}:test:all", loss=1.5, record=False)
    diff = compare(world.sources(), "old", "new")
    delta = next(one for one in diff.deltas if one.stage)
    assert delta.interval is None
    assert "they have no document in common" in delta.note
    assert diff.conclusion[0].startswith("Whether quality moved beyond chance is not known: other test sets")


def test_data_that_was_prepared_otherwise_from_the_same_raw_data_follows_the_code(world: World):
    first = world.push()
    world.run("old", first, world.dataset(["a"], raw="f" * 64), record=False)
    data = world.dataset(["A"], raw="f" * 64, code="beef" * 16)
    world.run("new", world.push(code="upper = True\n"), data, loss=1.5, record=False)
    diff = compare(world.sources(), "old", "new")
    assert diff.moved == ("code",)
    assert "data moved because code did: they count as one." in diff.conclusion
    assert diff.conclusion[-1].startswith("Only code moved")


def test_a_large_difference_is_cut_and_says_by_how_much(world: World):
    data = world.dataset(["a"])
    world.run("old", world.push(), data, record=False)
    world.run("new", world.push(code="".join(f"x{n} = {n}\n" for n in range(1000))), data, record=False)
    code = part(compare(world.sources(), "old", "new"), "code")
    assert len(code.text) == MAX_LINES
    assert code.cut > 700


def test_a_run_without_a_training_is_one_clear_error(world: World):
    world.run("old", world.push(), world.dataset(["a"]), record=False)
    world.facts.insert(RESULT, "prepare-1", {"dataset": {}}, run="failed")
    with pytest.raises(NothingToCompareError, match="'failed' planned no training"):
        compare(world.sources(), "old", "failed")


def test_the_command_prints_the_answer_first_and_json_for_programs(runs: World):
    options = ["--store", runs.stores.uri, "--facts", f"sqlite:///{runs.folder}/facts.db"]
    call = ["diff", "old", "data", *options]
    text = CliRunner().invoke(build(["diff"]), call, catch_exceptions=False).stdout.splitlines()
    assert text[0] == "tiny 0.1.0 (run old) -> tiny 0.4.0 (run data)"
    assert text[1].strip().startswith("Beyond chance")
    body = CliRunner().invoke(build(["diff"]), [*call, "--json"], catch_exceptions=False).stdout
    assert LineageDiff.load(json.loads(body)).moved == ("data",)
