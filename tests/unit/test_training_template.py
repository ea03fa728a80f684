"""The template model repository is what the product reads: it parses, plans and says exactly what it needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deepseek_ops.core.config import load_pipeline
from deepseek_ops.core.records import DatasetVersion
from deepseek_ops.pipeline.environment import parse_lock
from deepseek_ops.training import deepspeed_config, plan_training, plan_trial

TEMPLATE = Path(__file__).parents[2] / "include/examples/tiny-deepseek"
DATASET = DatasetVersion(name="deepseek-corpus", version="1" * 64, tree="2" * 64, num_files=3, num_bytes=10)


@pytest.fixture(scope="module")
def config():
    return load_pipeline((TEMPLATE / "deepseek.yaml").read_bytes(), file="deepseek.yaml")


@pytest.fixture(scope="module")
def model():
    return json.loads((TEMPLATE / "deepseek/model.json").read_text())


def test_the_pipeline_file_is_understood_without_a_warning(config):
    assert config.warnings == ()
    assert config.name == "deepseek-tiny"
    assert config.num_trials == 4


@pytest.mark.parametrize(
    ("branch", "path", "starts"),
    [
        ("exp/first", "deepseek/model.json", True),
        ("main", "deepseek.yaml", True),
        ("main", "requirements.txt", True),
        ("main", "README.md", False),
        ("feature", "deepseek/model.json", False),
    ],
)
def test_pushes_that_start_a_run(config, branch, path, starts):
    assert config.wants_push(branch, [path]) is starts


def test_every_trial_and_the_training_can_be_planned(config, model):
    for rate in config.training.searched[0].choices:
        values = {"learning_rate": rate}
        trial = plan_trial(config, dataset=DATASET, model=model, values=values)
        training = plan_training(config, dataset=DATASET, model=model, values=values)
        assert deepspeed_config(trial)["train_batch_size"] == deepspeed_config(training)["train_batch_size"]
        assert training.world_size == 2


def test_the_model_file_says_how_it_routes(model):
    assert (model["model_type"], model["topk_method"], model["scoring_func"]) == ("deepseek_v3", "noaux_tc", "sigmoid")
    assert model["num_nextn_predict_layers"] == 0


def test_the_lock_pins_exactly():
    pins = parse_lock((TEMPLATE / "requirements.txt").read_text(), file="requirements.txt")
    assert {"torch", "transformers", "deepspeed", "tokenizers"} <= set(pins)


def test_the_prepare_callable_is_there(config):
    module, _, function = config.data.prepare.partition(":")
    source = (TEMPLATE / (module.replace(".", "/") + ".py")).read_text()
    assert f"def {function}(raw: Path, out: Path)" in source
