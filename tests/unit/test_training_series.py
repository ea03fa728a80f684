"""Thinned series and their charts: bounded, no spike lost, rewinds taken back, whatever a stream holds."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_ops.training.streams import current
from deepseek_ops.web.training_chart import Line, Look, Mark, chart
from deepseek_ops.web.training_events import marks, tell
from deepseek_ops.web.training_series import Series


def plain(value: float) -> str:
    return f"{value:g}"


LOOK = Look(plain, plain)


def drawn(series: Series, *happened: Mark, look: Look = LOOK) -> str:
    found = chart("Loss", [Line("loss", series)], look, happened)
    assert found is not None
    return found


def test_a_long_series_stays_small_and_keeps_its_one_spike() -> None:
    series = Series(tail=64, buckets=32)
    for step in range(20_000):
        series.add(step, 100.0 if step == 3_333 else 1.0)
    assert len(list(series._items())) <= 32 + 2 * 64
    columns = series.columns(0, 19_999, 50)
    assert len(columns) <= 51
    assert [column.high for column in columns if column.first <= 3_333 <= column.last] == [100.0]
    assert sum(column.count for column in columns) == 20_000


def test_the_mean_of_a_column_is_the_mean_of_its_points() -> None:
    series = Series(tail=16, buckets=8)
    for step in range(1000):
        series.add(step, float(step))
    for column in series.columns(0, 999, 10):
        inside = range(int(column.first), int(column.last) + 1)
        assert column.mean == pytest.approx(sum(inside) / len(inside))
        assert (column.low, column.high) == (inside[0], inside[-1])


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 3)), max_size=120))
def test_rewinds_leave_what_the_reader_of_streams_leaves(told: list[tuple[int, int]]) -> None:
    from deepseek_ops.web.training_runs import RunView

    view = RunView(store=None, plan="0" * 64)  # type: ignore[arg-type]  (nothing is read)
    rows = [{"step": step, "attempt": attempt, "training_loss": float(at)} for at, (step, attempt) in enumerate(told)]
    for row in rows:
        view._metric(dict(row))
    kept = current(rows)
    series = view.series["training_loss"]
    assert list(series._at) == [row["step"] for row in kept]
    assert list(series._values) == [row["training_loss"] for row in kept]


def test_a_rewind_behind_the_exact_points_drops_whole_buckets_and_nothing_before() -> None:
    series = Series(tail=16, buckets=8)
    for step in range(500):
        series.add(step, 1.0)
    series.cut(300)
    ends = series.ends
    assert ends is not None
    assert 300 - 128 <= ends[1] < 300
    series.add(300, 2.0)
    assert series.last == 2.0


def test_points_that_are_no_numbers_break_the_line_and_are_marked() -> None:
    series = Series()
    for step, value in enumerate([3.0, 2.0, math.nan, math.inf, 1.5, 1.4]):
        series.add(step, value)
    picture = drawn(series)
    assert picture.count('class="mark-bad"') == 2
    assert "loss: 1 x NaN or infinite from 2" in picture
    curve = re.search(r'<path d="([^"]*)" class="curve', picture)
    assert curve is not None
    assert curve[1].count("M") == 2, "two stretches, no line across"
    assert "nan" not in curve[1] + picture.partition('class="mark')[0].replace("nan</b>", "")


@pytest.mark.parametrize("values", [[math.nan], [5.0], [0.0, 0.0], [-1.0, -1.0], [1e-300, 1e300], [math.inf, 1.0]])
@pytest.mark.parametrize("may_log", [False, True])
def test_any_values_make_a_picture_with_finite_places(values: list[float], may_log: bool) -> None:
    series = Series()
    for step, value in enumerate(values):
        series.add(step, value)
    picture = drawn(series, look=Look(plain, plain, may_log=may_log))
    for path in re.findall(r' d="([^"]*)"', picture):
        assert "nan" not in path
        assert "inf" not in path


def test_values_of_many_sizes_are_on_a_logarithmic_scale_that_says_so() -> None:
    series = Series()
    for step in range(100):
        series.add(step, 10.0 ** (step / 25))
    assert "logarithmic scale" in drawn(series, look=Look(plain, plain, may_log=True))
    assert "logarithmic scale" not in drawn(series)


def test_events_are_marks_at_their_step_and_ten_thousand_of_them_are_few() -> None:
    series = Series()
    for step in range(1, 10_001):
        series.add(step, 1.0)
    happened = [{"kind": "checkpoint", "step": step, "seconds": 1} for step in range(1, 10_001)]
    happened += [{"kind": "guardian", "step": 5000, "action": "rewind", "done": True, "evidence": ["nan"]}]
    picture = drawn(series, *marks(happened))
    assert 50 < picture.count('class="mark-saved"') < 300
    assert picture.count('class="mark-decision"') == 1
    assert "step 5,000: guardian, rewind done" in picture


@pytest.mark.parametrize("kind", ["guardian", "alert", "hang", "stacks", "stragglers", "restart", "resumed", "x"])
@pytest.mark.parametrize("value", [None, [], {}, "text", 7, ["a", {"b": 1}], True])
def test_an_event_with_anything_in_it_can_be_told(kind: str, value: object) -> None:
    names = ("step", "frames", "ranks", "behind", "positions", "evidence", "at", "reason", "went_to", "lives")
    told = tell({"kind": kind, **dict.fromkeys(names, value)})  # type: ignore[arg-type]
    assert told.kind == kind
    assert len(told.text) <= 600
