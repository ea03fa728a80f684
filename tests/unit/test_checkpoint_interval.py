"""The interval between checkpoints is the one that loses least."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_ops.training.intervals import NODE_MTBF_SECONDS, automatic, daly, lost_share, mtbf_seconds, young


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
