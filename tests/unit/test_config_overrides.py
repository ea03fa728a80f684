"""Overrides by dotted path."""

from __future__ import annotations

import pytest

from deepseek_ops.core.config import InvalidPipelineError, load_pipeline, parse_override

FILE = """\
name: tiny
training:
  hyperparameters:
    - {name: learning_rate, values: [0.001, 0.0005]}
    - {name: batch_size, value: 32}
validation:
  stages:
    - {name: quick, dataset: small-test-set, timeout: 30m}
deployment: {destination: {type: s3, path: s3://m/}}
"""


@pytest.fixture
def pipeline():
    return load_pipeline(FILE, file="deepseek.yaml")


def problems_of(pipeline, **overrides):
    with pytest.raises(InvalidPipelineError) as refused:
        pipeline.with_overrides(overrides)
    return {problem.key: str(problem) for problem in refused.value.problems}


def test_a_number_fixes_a_hyperparameter_and_a_list_searches_it(pipeline):
    changed = pipeline.with_overrides(
        {"training.hyperparameters.learning_rate": 0.01, "training.hyperparameters.batch_size": [16, 64]}
    )
    rate, batch = changed.training.hyperparameters
    assert (rate.value, rate.values, batch.value, batch.values) == (0.01, None, None, (16, 64))


def test_a_mapping_is_the_whole_entry_and_a_new_name_is_added(pipeline):
    changed = pipeline.with_overrides({"training.hyperparameters.weight_decay": {"range": [0, 1], "step": 0.5}})
    assert changed.training.hyperparameters[-1].choices == (0, 0.5, 1)


def test_the_mapping_form_of_hyperparameters_takes_overrides_too():
    short = load_pipeline("training: {hyperparameters: {learning_rate: [0.1, 0.2]}}", file="f")
    changed = short.with_overrides({"training.hyperparameters.learning_rate": 0.3})
    assert changed.training.resolve().learning_rate == 0.3


def test_entries_are_found_by_name_or_position(pipeline):
    by_name = pipeline.with_overrides({"validation.stages.quick.timeout": "5m"})
    by_position = pipeline.with_overrides({"validation.stages.0.timeout": "5m"})
    assert by_name.document() == by_position.document()
    assert by_name.validation.stages[0].timeout.total_seconds() == 300


def test_sections_that_the_file_lacks_are_made(pipeline):
    assert pipeline.with_overrides({"training.budget.usd": 5}).training.budget.usd == 5
    assert pipeline.with_overrides({"training.deepspeed.zero_optimization.stage": 1}).training.deepspeed == {
        "zero_optimization": {"stage": 1}
    }


def test_defaults_follow_the_override(pipeline):
    assert pipeline.with_overrides({"deployment.strategy": "blue-green"}).deployment.steps == (100,)
    assert pipeline.with_overrides({"name": "other"}).deployment.endpoint == "other"


def test_the_pipeline_itself_is_not_changed(pipeline):
    before = pipeline.document()
    pipeline.with_overrides({"training.nodes": 4})
    assert pipeline.document() == before


def test_overrides_go_on_top_of_overrides(pipeline):
    changed = pipeline.with_overrides({"training.nodes": 2}).with_overrides({"training.seed": 7})
    assert (changed.training.nodes, changed.training.seed) == (2, 7)


def test_nothing_changes_nothing(pipeline):
    assert pipeline.with_overrides({}).document() == pipeline.document()


@pytest.mark.parametrize(
    ("path", "value", "key", "says"),
    [
        ("training.nodse", 2, "training.nodse", "Did you mean 'nodes'?"),
        ("training.nodes", "2", "training.nodes", "expected a whole number"),
        ("training.hyperparameters.lr", 1, None, "'learning_rate'"),
        ("training.hyperparameters.epochs", -1, None, "greater than 0"),
        ("validation.stages.slow.timeout", "1h", "validation.stages.slow.timeout", "leads nowhere"),
        ("validation.stages.7", {}, "validation.stages.7", "no entry '7'"),
        ("name.x", 1, "name.x", "no entry 'x'"),
        ("training..nodes", 1, "training..nodes", "not a dotted path"),
        ("", 1, "", "not a dotted path"),
        ("training", 3, "training", "expected a mapping"),
    ],
)
def test_a_wrong_override_names_its_path(pipeline, path, value, key, says):
    found = problems_of(pipeline, **{path: value})
    assert len(found) == 1, found
    ((where, message),) = found.items()
    assert key is None or where == key
    assert where.startswith(path)
    assert says in message
    assert message.startswith("(override): ")


def test_all_wrong_overrides_are_told_at_once(pipeline):
    found = problems_of(pipeline, **{"training.nodes": "x", "a.b": 1, "validation.stages.slow.timeout": "1h"})
    assert set(found) == {"training.nodes", "a", "validation.stages.slow.timeout"}


def test_a_command_line_override_is_yaml():
    assert parse_override("training.hyperparameters.learning_rate=1e-3") == (
        "training.hyperparameters.learning_rate",
        0.001,
    )
    assert parse_override("x=[1, 2]") == ("x", [1, 2])
    assert parse_override("release.tag=v{version}=x") == ("release.tag", "v{version}=x")
    with pytest.raises(InvalidPipelineError):
        parse_override("training.nodes")
