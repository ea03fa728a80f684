"""Learning rate, number of steps and loss curves are functions of the step."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_ops.training.curve import Curve
from deepseek_ops.training.schedule import FLOOR, learning_rate, thinned, total_steps


def test_the_rate_warms_up_peaks_and_falls_to_a_tenth():
    rates = [learning_rate(step, peak=1.0, total_steps=100, warmup_ratio=0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert rates[10] == 1.0
    assert all(left >= right for left, right in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(FLOOR)


@given(total=st.integers(1, 500), warmup=st.floats(0, 0.99), step=st.integers(0, 600))
def test_the_rate_is_never_zero_and_never_above_the_peak(total, warmup, step):
    assert 0 < learning_rate(step, peak=3e-4, total_steps=total, warmup_ratio=warmup) <= 3e-4


def test_steps_come_from_max_steps_or_epochs():
    assert total_steps(max_steps=7, epochs=3, num_samples=100, batch_size=8) == 7
    assert total_steps(max_steps=None, epochs=2, num_samples=100, batch_size=8) == 25
    assert total_steps(max_steps=None, epochs=None, num_samples=3, batch_size=8) == 1


def test_thinning_keeps_both_ends():
    points = [(step, float(step)) for step in range(1000)]
    kept = thinned(points)
    assert len(kept) == 64
    assert kept[0] == points[0]
    assert kept[-1] == points[-1]
    assert list(kept) == sorted(set(kept))


@given(st.integers(1, 5000))
def test_a_curve_is_bounded_and_ends_with_the_newest_point(count):
    curve = Curve()
    for step in range(1, count + 1):
        curve.add(step, step / 7)
    points = curve.points()
    assert len(points) <= 64
    assert points[0] == (1, 1 / 7)
    assert points[-1] == (count, count / 7)


@given(before=st.integers(0, 400), after=st.integers(1, 400))
def test_a_resumed_curve_equals_an_uninterrupted_one(before, after):
    whole, first = Curve(), Curve()
    for step in range(before + after):
        whole.add(step, step / 3)
        if step < before:
            first.add(step, step / 3)
    resumed = Curve.load(first.dump())
    for step in range(before, before + after):
        resumed.add(step, step / 3)
    assert resumed.points() == whole.points()
    assert resumed.last == whole.last


def test_a_curve_keeps_what_is_not_finite():
    curve = Curve()
    curve.add(1, float("nan"))
    assert Curve.load(curve.dump()).last != Curve.load(curve.dump()).last
