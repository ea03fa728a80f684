"""Alert rules of the pipeline file: what cannot be meant is refused with its place, the rest reaches the job whole."""

from __future__ import annotations

import json

import pytest

from deepseek_ops.core.config import InvalidPipelineError, load_pipeline
from deepseek_ops.core.config.alerts import Alert


@pytest.mark.parametrize(
    ("rule", "key", "says"),
    [
        ("actions: [{type: stop_training}, {type: rewind}]", "alerts[0].actions[1]", "never reached"),
        ("max_attempts: 2, actions: [{type: page}]", "alerts[0].max_attempts", "bounds actions"),
        ("actions: [{type: http}]", "alerts[0].actions[0].type", "neither connection nor url"),
        (
            "actions: [{type: http, url: 'https://a.b/c?token=1'}]",
            "alerts[0].actions[0].url",
            "without credentials",
        ),
        ("actions: [{type: slack, channel: 'a b'}]", "alerts[0].actions[0].channel", "#training"),
        ("actions: [{type: skip_batches, count: 0}]", "alerts[0].actions[0].count", "greater than"),
        ("cooldown: 5, actions: [{type: page}]", "alerts[0].cooldown", "3 steps"),
        ("severity: bad, actions: [{type: page}]", "alerts[0].severity", "critical"),
    ],
)
def test_what_cannot_be_meant_is_refused_with_its_place(rule, key, says):
    with pytest.raises(InvalidPipelineError) as refused:
        load_pipeline(f"alerts: [{{metric: loss, condition: value > 1, {rule}}}]", file="deepseek.yaml")
    (problem,) = refused.value.problems
    assert (problem.key, problem.line) == (key, 1)
    assert says in str(problem)


def test_no_batch_makes_a_step_slow():
    text = "alerts: [{metric: tokens_per_second, condition: value < 1, actions: [{type: skip_batches}]}]"
    with pytest.raises(InvalidPipelineError, match="cannot help tokens_per_second"):
        load_pipeline(text, file="deepseek.yaml")


def test_a_whole_ladder_reaches_the_job_as_it_was_written():
    text = """
alerts:
  - metric: training_loss
    condition: robust_zscore(100) > 8
    for: 3 steps
    cooldown: 10m
    max_attempts: 4
    severity: critical
    actions:
      - {type: slack, connection: slack_ml, channel: "#training"}
      - {type: http, connection: pager}
      - {type: email, recipients: [team@example.com]}
      - {type: checkpoint}
      - {type: skip_batches, count: 4, max_attempts: 2}
      - {type: lower_lr, factor: 0.3}
      - {type: rewind, max_attempts: 2}
      - {type: stop_training}
"""
    (rule,) = load_pipeline(text, file="deepseek.yaml").alerts
    sent = json.loads(json.dumps(rule.model_dump(mode="json", by_alias=True, exclude_none=True)))
    assert Alert.model_validate(sent) == rule
    assert [act.type for act in rule.ladder] == [
        "checkpoint",
        "skip_batches",
        "lower_lr",
        "rewind",
        "stop_training",
    ]
