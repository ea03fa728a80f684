"""The interval between checkpoints is the one that loses least."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_ops.jobs.training_pace import PROBE_STEPS, Pace
from deepseek_ops.training.intervals import (
    HISTORY_INTERRUPTIONS,
    HISTORY_SECONDS,
    NODE_MTBF_SECONDS,
    History,
    automatic,
    daly,
    lost_share,
    mtbf_seconds,
    young,
)


def test_young_and_daly_give_the_published_example():
    """A checkpoint of a minute and a failure every three hours: 19 minutes, a tenth of the time lost."""
    assert young(60, 3 * 3600) == pytest.approx(1138.4, abs=0.1)
    assert lost_share(young(60, 3 * 3600), 60, 3 * 3600) == pytest.approx(0.105, abs=0.001)
    assert daly(60, 3 * 3600) == pytest.approx(1138.4 * (1 + 0.0527 / 3 + 0.00278 / 9) - 60, rel=1e-3)


@given(cost=st.floats(0.01, 600), mtbf=st.floats(1200, 1e7))
def test_no_other_interval_loses_less_than_youngs(cost, mtbf):
    best = lost_share(young(cost, mtbf), cost, mtbf)
    assert best <= lost_share(1.1 * young(cost, mtbf), cost, mtbf)
    assert best <= lost_share(0.9 * young(cost, mtbf), cost, mtbf)


def test_where_checkpoints_take_longer_than_failures_are_apart_there_is_no_optimum():
    assert daly(100, 10) == 10


def test_interruptions_outweigh_what_was_expected_and_quiet_hours_do_not_promise_eternity():
    assert mtbf_seconds(0, 0) == NODE_MTBF_SECONDS
    assert mtbf_seconds(0, 3600) == NODE_MTBF_SECONDS + 3600
    assert mtbf_seconds(9, 3600, expected=3600) == 720
    assert mtbf_seconds(0, 0, nodes=8) == NODE_MTBF_SECONDS / 8


def test_the_automatic_interval_names_its_source_and_is_never_shorter_than_a_checkpoint_takes():
    interval = automatic(cost=0.5, step_seconds=0.25, interruptions=2, trained_seconds=7200)
    assert interval.steps == round(daly(0.5, (86400 + 7200) / 3) / 0.25)
    assert interval.lost_share < 0.01
    assert "2 interruptions" in interval.source
    assert "Daly" in interval.source
    busy = automatic(cost=0.001, step_seconds=0.25, interruptions=50, trained_seconds=60, busy=300)
    assert busy.steps == 1200


def test_what_other_trainings_met_counts_per_machine_like_ones_own_time():
    history = History(4, 4 * 3600.0)
    assert mtbf_seconds(0, 0, expected=3600, history=history) == 3600
    assert mtbf_seconds(0, 0, expected=3600, nodes=4, history=history) == 900
    assert mtbf_seconds(1, 1800, expected=3600, nodes=2, history=history) == (5 * 3600 / 2 + 1800) / 6
    said = automatic(cost=1, step_seconds=1, interruptions=1, trained_seconds=60, history=history)
    assert said.mtbf_seconds == pytest.approx((NODE_MTBF_SECONDS + 4 * 3600 + 60) / 6)
    assert "1 interruptions in 60 s of training, 4 in 4 machine-hours of others" in said.source


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0, 1e9)), max_size=300))
def test_a_history_is_bounded_and_keeps_its_rate_where_only_its_weight_is_cut(attempts):
    history = History.of(History(*attempt) for attempt in attempts)
    count, seconds = sum(one[0] for one in attempts), sum(one[1] for one in attempts)
    assert (history.interruptions, history.machine_seconds) <= (HISTORY_INTERRUPTIONS, HISTORY_SECONDS)
    assert history.machine_seconds <= HISTORY_SECONDS
    if history.machine_seconds < HISTORY_SECONDS:
        assert history.machine_seconds * count == pytest.approx(history.interruptions * seconds)
    assert mtbf_seconds(60, 60 * 600.0, history=history) < HISTORY_SECONDS / 30, "one's own losses outweigh it"
    assert History.load(history.dump()) == history


@pytest.mark.parametrize("value", [None, 3, {}, {"interruptions": -1, "machine_seconds": 1}, {"interruptions": "9"}])
def test_a_history_that_cannot_be_read_is_none(value):
    assert History.load(value) == History()


def test_an_attempt_that_knows_it_is_not_the_first_expects_to_be_interrupted_again(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(clock)))
    means = []
    for earlier in (0, 3):
        pace = Pace("auto", 2, history=History(1, 3600.0), earlier=earlier)
        pace.begin(0)
        for _ in range(PROBE_STEPS):
            pace.step()
        pace.saved(PROBE_STEPS, 0.5)
        means.append(pace.planned(interruptions=1, before_seconds=100.0).mtbf_seconds)
    known = (NODE_MTBF_SECONDS + 3600) / 2 + 100 + PROBE_STEPS + 0.5
    assert means == [pytest.approx(known / 3), pytest.approx(known / 5)]
