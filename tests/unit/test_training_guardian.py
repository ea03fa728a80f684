"""Rules decide by the metric history alone: at the right step, once, and on every rank's NaN."""

from __future__ import annotations

import math

from deepseek_ops.training.guardian import ELAPSED, Guardian

NAN = math.nan
STOP = [{"type": "stop_training"}]


def rows(metric, values, seconds=1.0):
    return [{"step": float(step), metric: value, ELAPSED: step * seconds} for step, value in enumerate(values, start=1)]


def steps_that_fire(guardian, history):
    fired = []
    for end in range(1, len(history) + 1):
        window = history[max(0, end - guardian.memory) : end]
        fired += [(decision.step, decision.action) for decision in guardian.decide(window)]
    return fired


def test_a_rule_fires_when_it_has_held_for_its_steps():
    guardian = Guardian(
        [{"metric": "training_loss", "condition": "value > 20 or is_nan()", "for": "3 steps", "actions": STOP}]
    )
    assert steps_that_fire(guardian, rows("training_loss", [3, 25, NAN, 2, 30, NAN, 40, 50])) == [(7, "stop")]


def test_a_rule_fires_again_only_after_it_was_false():
    guardian = Guardian([{"metric": "grad_norm", "condition": "value > 5", "actions": [{"type": "page"}]}])
    assert steps_that_fire(guardian, rows("grad_norm", [1, 9, 9, 9, 1, 9])) == [(2, "record"), (6, "record")]


def test_a_rule_with_a_duration_uses_the_clock_in_the_history():
    guardian = Guardian(
        [{"metric": "tokens_per_second", "condition": "value < 10", "for": "30s", "actions": [{"type": "page"}]}]
    )
    assert steps_that_fire(guardian, rows("tokens_per_second", [50, 5, 5, 5, 5, 5], seconds=10)) == [(5, "record")]
    assert steps_that_fire(guardian, rows("tokens_per_second", [50, 5, 5, 50, 5, 5], seconds=10)) == []


def test_metrics_that_are_not_measured_at_a_step_are_not_judged_then():
    guardian = Guardian([{"metric": "val_loss", "condition": "value > 5", "for": "2 steps", "actions": STOP}])
    history = [{"step": float(step), **({"val_loss": 9.0} if step % 10 == 0 else {})} for step in range(1, 31)]
    assert steps_that_fire(guardian, history[:19]) == []
    assert [decision.step for decision in guardian.decide(history[:20])] == [20]


def test_the_defaults_see_a_nan_on_any_rank():
    history = rows("loss_nan_ranks", [0, 0, 1, 0, 2, 1, 1])
    assert steps_that_fire(Guardian([]), history) == [(3, "record"), (5, "record"), (7, "stop")]


def test_the_defaults_stop_a_run_that_only_skips():
    assert steps_that_fire(Guardian([]), rows("skipped", [0, 1, 1, 0, 1, 1, 1, 1])) == [(7, "stop")]


def test_an_own_rule_replaces_the_default_for_its_metric():
    guardian = Guardian([{"metric": "skipped", "condition": "value > 0", "for": "50 steps", "actions": STOP}])
    assert steps_that_fire(guardian, rows("skipped", [1] * 20)) == []


def test_a_decision_carries_its_evidence():
    guardian = Guardian([{"metric": "training_loss", "condition": "value > 20", "actions": STOP}])
    (decision,) = guardian.decide(rows("training_loss", [4.0, 5.0, 21.0]))
    assert decision.dump()["evidence"] == ["4.0", "5.0", "21.0"]
    assert "value > 20" in decision.reason
    assert "21" in decision.reason


def test_a_bounded_history_decides_like_the_whole_one():
    guardian = Guardian([{"metric": "training_loss", "condition": "zscore(20) > 6", "for": "2 steps", "actions": STOP}])
    values = [5 + 0.01 * (step % 7) for step in range(60)] + [9.0, 30.0, 5.0]
    history = rows("training_loss", values)
    whole = [(d.step, d.action) for end in range(1, len(history) + 1) for d in guardian.decide(history[:end])]
    assert steps_that_fire(guardian, history) == whole
