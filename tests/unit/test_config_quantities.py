"""Durations, percentages and spans."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_ops.core.quantities import (
    QuantityError,
    Span,
    format_duration,
    format_percent,
    parse_duration,
    parse_percent,
    parse_span,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30m", 1800), ("2h", 7200), ("5m", 300), ("90s", 90), ("1h30m", 5400), ("1.5h", 5400), ("1w 2d", 777600)],
)
def test_durations_have_units(text, seconds):
    assert parse_duration(text).total_seconds() == seconds


@pytest.mark.parametrize(
    "text", ["30", 30, "", "m", "-5m", "0s", "5min", "1h1h", "400d", "1e3s", None, "3 steps", True]
)
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(QuantityError, match="30m"):
        parse_duration(text)


@given(st.integers(1, 366 * 86400 * 1000).map(lambda thousandths: timedelta(milliseconds=thousandths)))
def test_a_duration_written_reads_back(time):
    assert parse_duration(format_duration(time)) == time


def test_percentages_carry_their_sign():
    assert (parse_percent("20%"), parse_percent("0.5 %"), parse_percent("100%")) == (20.0, 0.5, 100.0)


@pytest.mark.parametrize("text", ["20", 20, 0.2, "120%", "-1%", "%", "20%%", None])
def test_what_is_no_percentage_is_refused(text):
    with pytest.raises(QuantityError, match="20%"):
        parse_percent(text)


@given(st.integers(0, 10_000).map(lambda hundredths: hundredths / 100))
def test_a_percentage_written_reads_back(percent):
    assert parse_percent(format_percent(percent)) == percent


@pytest.mark.parametrize(
    ("text", "span"),
    [("3 steps", Span(steps=3)), ("1 step", Span(steps=1)), ("30s", Span(time=timedelta(seconds=30)))],
)
def test_spans_are_steps_or_time(text, span):
    assert parse_span(text) == span
    assert parse_span(str(span)) == span


@pytest.mark.parametrize("text", ["3", 3, "0 steps", "steps", "-1 steps", "3 epochs"])
def test_what_is_no_span_is_refused(text):
    with pytest.raises(QuantityError, match="3 steps"):
        parse_span(text)
