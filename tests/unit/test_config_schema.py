"""The JSON Schema agrees with the reader."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import pytest
import yaml
from test_seeds import FRAGMENTS

from deepseek_ops.core.config import load_pipeline, pipeline_schema

FULL = Path(__file__).parents[2] / "include" / "configs" / "pipeline-full.yaml"


@pytest.fixture(scope="module")
def validator():
    schema = pipeline_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


@pytest.mark.parametrize("text", [FULL.read_text(), *FRAGMENTS], ids=lambda text: text[:20])
def test_accepts_what_loads(validator, text):
    load_pipeline(text, file="f")
    validator.validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    "text",
    [
        "training: {hyperparameters: {learning_rate: [0.1], batch_size: 2, weight_decay: {range: [0, 1], log: false}}}",
        "deployment: {destination: {type: local, path: file:///m}, steps: [5%, 100%]}",
        "alerts: [{metric: x, condition: value > 1, for: 30s, actions: [{type: rewind}]}]",
        "validation: {stages: [{name: a, timeout: 1h 30m}]}",
    ],
)
def test_accepts_the_short_forms(validator, text):
    load_pipeline(text, file="f")
    validator.validate(yaml.safe_load(text))


@pytest.mark.parametrize(
    "text",
    [
        "nmae: x",
        "training: {nodes: two}",
        "training: {strategy: ddp}",
        "training: {hyperparameters: {lr: 1}}",
        "triggers: [{type: git-pull}]",
        "validation: {stages: [{name: a, timeout: 30}]}",
        "experiment: {control: latest, variants: [{version: v1.3.0, traffic: 20%}]}",
        "experiment: {control: v1.2.0, variants: [{version: v1.3.0, traffic: 0.2}]}",
        "deployment: {destination: {type: s3, path: /m}}",
    ],
)
def test_refuses_what_one_key_shows_to_be_wrong(validator, text):
    with pytest.raises(jsonschema.ValidationError):
        validator.validate(yaml.safe_load(text))


def test_describes_every_key():
    schema = pipeline_schema()
    bare = [
        f"{name}.{key}"
        for name, model in {"PipelineFile": schema, **schema["$defs"]}.items()
        for key, value in model.get("properties", {}).items()
        if "description" not in value and key != "type"
    ]
    assert bare == []
