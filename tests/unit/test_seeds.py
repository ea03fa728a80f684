"""The YAML that articles about CI for DeepSeek show must load as it stands: it is what newcomers paste first."""

from __future__ import annotations

from datetime import timedelta

import pytest

from deepseek_ops.core.config import (
    EmailAction,
    GitPushTrigger,
    InvalidPipelineError,
    S3Destination,
    StopTrainingAction,
    load_pipeline,
)
from deepseek_ops.validation import plan_stages

TRIGGERS = """\
# .ciuicci.yaml
triggers:
  - type: git-push
    branches:
      - main
    paths:
      - "deepseek/**"
      - "requirements.txt"
"""
JOBS = """\
jobs:
  setup:
    container: nvidia-cuda:11.3-base
    steps:
      - run: pip install -r requirements.txt
      - cache:
          key: ${{ hashFiles('requirements.txt') }}
          paths:
            - /root/.cache/pip
"""
TRAINING = """\
training:
  strategy: horovod
  nodes: 4
  gpus_per_node: 8
  hyperparameters:
    - name: learning_rate
      values: [0.001, 0.0005, 0.0001]
    - name: batch_size
      values: [32, 64, 128]
"""
ALERTS = """\
alerts:
  - metric: training_loss
    condition: value > threshold or is_nan()
    actions:
      - type: email
        recipients: [team@example.com]
      - type: stop_training
"""
DEPLOYMENT = """\
deployment:
  formats:
    - onnx
    - tensorrt
    - torchscript
  destination:
    type: s3
    path: s3://model-registry/deepseek/
"""
EXPERIMENT = """\
experiment:
  control: v1.2.0
  variants:
    - version: v1.3.0
      traffic: 20%
  metrics:
    - accuracy
    - latency
    - throughput
"""
VALIDATION = """\
validation:
  stages:
    - name: quick-check
      dataset: small-test-set
      timeout: 30m
    - name: thorough-eval
      dataset: full-test-set
      timeout: 2h
"""
WORKFLOW = """\
# .github/workflows/train.yml
name: DeepSeek Training
on:
  push:
    branches: [ "exp/*" ]
jobs:
  train:
    runs-on: [self-hosted, gpu]
    steps:
      - uses: actions/checkout@v4
      - name: Install dependencies
        run: pip install -r requirements.txt
      - name: Run training
        run: python train.py --config config.py
      - name: Upload model
        uses: actions/upload-artifact@v3
        with:
          name: model-weights
          path: outputs/model.pt
"""
FRAGMENTS = (TRIGGERS, JOBS, TRAINING, ALERTS, DEPLOYMENT, EXPERIMENT, VALIDATION)


@pytest.mark.parametrize("fragment", [*FRAGMENTS, WORKFLOW, "".join(FRAGMENTS)], ids=lambda text: text.split(":")[0])
def test_every_fragment_loads_as_it_stands(fragment):
    assert load_pipeline(fragment, file="fragment.yaml").name


def test_the_trigger_filters_by_branch_and_path():
    trigger = load_pipeline(TRIGGERS, file="f").triggers[0]
    assert isinstance(trigger, GitPushTrigger)
    assert trigger.wants("main", ["docs/a.md", "deepseek/model/attention.py"])
    assert trigger.wants("main", ["requirements.txt"])
    assert not trigger.wants("main", ["docs/requirements.txt", "README.md"])
    assert not trigger.wants("exp/first", ["deepseek/model.py"])


def test_the_setup_is_its_image_and_requirements():
    pipeline = load_pipeline(JOBS, file="f")
    setup = pipeline.jobs.setup
    assert (setup.container, setup.requirements) == ("nvidia-cuda:11.3-base", "requirements.txt")
    assert setup.steps[1].cache.key == "${{ hashFiles('requirements.txt') }}"
    assert pipeline.warnings == (), "the install step is what the environment does anyway"


def test_horovod_becomes_deepspeed_with_a_warning():
    pipeline = load_pipeline(TRAINING, file="f")
    assert pipeline.training.strategy == "deepspeed"
    assert any("horovod" in warning for warning in pipeline.warnings)
    assert pipeline.training.world_size == 32
    assert pipeline.num_trials == 9, "nine combinations, however many trials are allowed"


def test_the_alert_fires_on_nan_and_on_a_loss_no_model_has():
    pipeline = load_pipeline(ALERTS, file="f")
    (alert,) = pipeline.alerts
    assert alert.fires([3.0, float("nan")])
    assert alert.fires([3.0, 20.5])
    assert not alert.fires([3.0, 11.8])
    assert [type(action) for action in alert.actions] == [EmailAction, StopTrainingAction]
    assert any("threshold" in warning for warning in pipeline.warnings)


def test_deployment_and_experiment_say_what_they_say():
    deployment = load_pipeline(DEPLOYMENT, file="f").deployment
    assert deployment.formats == ("onnx", "tensorrt", "torchscript")
    assert deployment.destination == S3Destination(type="s3", path="s3://model-registry/deepseek/")
    experiment = load_pipeline(EXPERIMENT, file="f").experiment
    assert (experiment.variants[0].traffic, experiment.control_traffic) == (20.0, 80.0)


def test_the_stages_find_their_datasets():
    quick, thorough = plan_stages(load_pipeline(VALIDATION, file="f").validation)
    assert (quick.timeout_seconds, quick.max_items) == (timedelta(minutes=30).total_seconds(), 64)
    assert (thorough.timeout_seconds, thorough.max_items) == (timedelta(hours=2).total_seconds(), None)


class TestGitHubWorkflow:
    def test_its_push_and_requirements_are_taken_over_and_its_commands_named(self):
        pipeline = load_pipeline(WORKFLOW, file="train.yml")
        assert pipeline.name == "deepseek-training"
        assert pipeline.wants_push("exp/lr-tuning", ["config.py"])
        assert not pipeline.wants_push("main", ["config.py"])
        assert pipeline.jobs.setup.requirements == "requirements.txt"
        said = "\n".join(pipeline.warnings)
        assert "'python train.py --config config.py' is not run" in said
        assert "actions/upload-artifact is left out" in said

    def test_tags_and_schedules_are_triggers_too(self):
        text = "on: {push: {tags: ['v*']}, schedule: [{cron: '0 2 * * 0'}], pull_request: {}}\njobs: {}"
        pipeline = load_pipeline(text, file="w.yml")
        assert pipeline.wants_tag("v1.0")
        assert not pipeline.wants_push("main", [])
        assert pipeline.triggers[1].cron == "0 2 * * 0"
        assert any("pull_request" in warning for warning in pipeline.warnings)

    @pytest.mark.parametrize("on", ["push", "[push, workflow_dispatch]"])
    def test_a_bare_push_means_every_branch(self, on):
        assert load_pipeline(f"on: {on}\njobs: {{}}", file="w.yml").wants_push("any/branch", ["x"])

    def test_what_cannot_be_translated_is_refused_in_the_workflows_own_words(self):
        text = "on:\n  push:\n    branches-ignore: [main]\njobs: {}\n"
        with pytest.raises(InvalidPipelineError) as refused:
            load_pipeline(text, file="w.yml")
        (problem,) = refused.value.problems
        assert (problem.line, problem.key) == (3, "on.push.branches-ignore")
