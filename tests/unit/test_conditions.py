"""The condition language of alerts."""

from __future__ import annotations

import contextlib
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_ops.core.conditions import MAX_DEPTH, MAX_LENGTH, Condition, ConditionError
from deepseek_ops.core.config import Alert

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("text", "history", "holds"),
    [
        ("value > 20 or is_nan()", [21.0], True),
        ("value > 20 or is_nan()", [NAN], True),
        ("value > 20 or is_nan()", [20.0], False),
        ("value > 20 or is_inf()", [-INF], True),
        ("is_nan(value)", [NAN], True),
        ("not is_nan() and value < 1", [0.5], True),
        ("value >= 1 + 2 * 3", [7.0], True),
        ("value == (1 + 2) * 3", [9.0], True),
        ("value < -1", [-2.0], True),
        ("value - 1 - 1 == 1", [3.0], True),
        ("value / 2 / 2 == 1", [4.0], True),
        ("value != 1e-3", [0.001], False),
        ("value > 1 or value > 0 and value > 2", [0.5], False),
        ("mean(3) > 2", [9.0, 1.0, 2.0, 4.0], True),
        ("mean(3) > 2", [9.0, 9.0], False),
        ("slope(3) > 0.9", [0.0, 1.0, 2.0], True),
        ("slope(3) < 0", [0.0, 1.0, 2.0], False),
        ("zscore(4) > 6", [1.0, 2.0, 1.0, 2.0, 9.0], True),
        ("zscore(4) > 6", [1.0, 2.0, 1.0, 2.0, 1.5], False),
        ("zscore(3) > 6", [2.0, 2.0, 2.0, 3.0], True),
        ("median(4) == 2.5", [9.0, 1.0, 2.0, 3.0, 400.0], True),
        ("median(5) > 0", [1.0, 2.0, 3.0, 4.0], False),
        ("robust_zscore(4) > 6", [1.0, 2.0, 1.0, 2.0, 9.0], True),
        ("robust_zscore(4) > 5 and not zscore(4) > 5", [1.0, 2.0, 1.0, 90.0, 9.0], True),
        ("zscore(3) > 6", [2.0, 2.0, 2.0, 2.0], False),
        ("value > 2 * mean(4)", [1.0, NAN, 1.0, 10.0], True),
        ("1 / 0 > 5", [0.0], True),
        ("0 / 0 > 5", [0.0], False),
        ("value > 0", [], False),
        ("is_nan()", [], False),
    ],
)
def test_says_whether_it_holds(text, history, holds):
    assert Condition.parse(text).holds(history) is holds


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("value > threshold", False),
        ("not value > threshold", False),
        ("value > threshold or value > 1", True),
        ("value > threshold and value > 1", False),
        ("not (value > threshold and value < 1)", True),
    ],
)
def test_what_is_unknown_neither_holds_nor_fails(text, holds):
    assert Condition.parse(text).holds([5.0]) is holds


def test_the_threshold_is_the_alerts():
    condition = Condition.parse("value > threshold")
    assert condition.uses_threshold
    assert condition.holds([5.0], threshold=4.0)
    assert not condition.holds([5.0], threshold=6.0)


def test_the_window_is_the_history_it_needs():
    condition = Condition.parse("zscore(200) > 6 or mean(10) > 3")
    history = [float(n % 7) for n in range(300)]
    assert condition.window == 201
    assert condition.holds(history) is condition.holds(history[-condition.window :])
    assert Condition.parse("value > 1").window == 1


@pytest.mark.parametrize(
    ("text", "column", "says"),
    [
        ("value >", 8, "the end stands where a value is needed"),
        ("", 1, "the end"),
        ("value", 1, "compare it"),
        ("value > 1 and 3", 15, "compare it"),
        ("(value > 1) + 2 > 1", 1, "number is needed"),
        ("is_nan() > 1", 1, "number is needed"),
        ("1 < value < 3", 11, "cannot be chained"),
        ("value > 1 value", 11, "does not follow"),
        ("loss > 1", 1, "threshold"),
        ("value > __import__(1)", 9, "__import__"),
        ("value > 'os'", 9, '"\'" is not understood'),
        ("value.x > 1", 6, "'.' is not understood"),
        ("value ** 2 > 1", 8, "'*'"),
        ("mean(0) > 1", 6, "whole number of points"),
        ("mean(2.5) > 1", 6, "whole number of points"),
        ("mean(99999999) > 1", 6, "whole number of points"),
        ("mean > 1", 6, "is a function"),
        ("(value > 1", 11, "closing parenthesis"),
        ("value > 1; stop", 10, "';' is not understood"),
        ("value ≥ 1", 7, "'≥'"),
    ],
)
def test_an_error_names_the_column(text, column, says):
    with pytest.raises(ConditionError) as refused:
        Condition.parse(text)
    assert refused.value.column == column
    assert says in str(refused.value)


def test_size_and_depth_are_bounded():
    with pytest.raises(ConditionError, match="characters"):
        Condition.parse("value > 1" + " " * MAX_LENGTH)
    for nested in ("(" * 200 + "value", "not " * 100 + "is_nan()", "-" * 300 + "value > 1"):
        with pytest.raises(ConditionError, match="nested deeper"):
            Condition.parse(nested)
    assert Condition.parse("(" * MAX_DEPTH + "value > 1" + ")" * MAX_DEPTH).holds([2.0])


@pytest.mark.timeout(60)
def test_a_long_chain_costs_no_more_than_its_length():
    condition = Condition.parse(" or ".join(["value>9"] * 45))
    assert not any(condition.holds([1.0]) for _ in range(100))


finite = st.floats(-1e6, 1e6)


@given(st.lists(finite, min_size=3, max_size=20), finite)
def test_the_mean_is_the_mean(history, limit):
    size = len(history)
    mean = statistics.fmean(history)
    if abs(mean - limit) > 1e-6:
        assert Condition.parse(f"mean({size}) > {_literal(limit)}").holds(history) is (mean > limit)


@given(st.lists(finite, min_size=4, max_size=20))
def test_the_slope_is_that_of_least_squares(history):
    slope = statistics.linear_regression(range(len(history)), history).slope
    text = f"slope({len(history)}) > {_literal(slope - 1e-3)} and slope({len(history)}) < {_literal(slope + 1e-3)}"
    assert Condition.parse(text).holds(history)


@given(st.text(alphabet="value threshold()<>=+-*/ 0123456789.notandorisem_", max_size=60))
def test_any_text_parses_or_is_refused(text):
    with contextlib.suppress(ConditionError):
        assert Condition.parse(text).holds([NAN, INF, 1.0], threshold=2.0) in (True, False)


@given(st.lists(st.floats(), max_size=12), st.none() | finite)
def test_any_history_gives_an_answer(history, threshold):
    statistic = "zscore(3) > threshold or robust_zscore(3) > 2 or slope(4) * mean(2) / median(3) > 1"
    condition = Condition.parse(f"{statistic} or is_inf()")
    assert condition.holds(history, threshold=threshold) in (True, False)


class TestAlert:
    def alert(self, **changes) -> Alert:
        given = {"metric": "training_loss", "condition": "value > 20 or is_nan()", "for": "3 steps"}
        return Alert(**given | changes, actions=({"type": "stop_training"},))

    def test_fires_when_the_condition_held_for_all_of_its_steps(self):
        alert = self.alert()
        assert alert.fires([1.0, 21.0, NAN, 30.0])
        assert not alert.fires([21.0, 1.0, 30.0])
        assert not alert.fires([21.0, 30.0])

    def test_looks_at_each_step_with_the_history_of_that_step(self):
        alert = self.alert(condition="zscore(4) > 5", **{"for": "2 steps"})
        calm = [1.0, 1.1, 0.9, 1.0]
        assert alert.fires([*calm, 3.0, 30.0])
        assert not alert.fires([*calm, 3.0, 3.0]), "the first outlier has widened the deviation"

    def test_without_steps_the_newest_point_decides(self):
        assert self.alert(**{"for": "30s"}).fires([1.0, 21.0])


def _literal(number: float) -> str:
    return f"(0 - {-number!r})" if number < 0 else repr(number)
