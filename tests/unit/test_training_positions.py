"""Leaving batches out moves no step before them, and every other batch is trained on once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deepseek_ops.training.positions import count_of, next_positions, position_of, united


def test_steps_take_what_is_not_left_out():
    skipped = [(3, 5), (7, 8)]
    assert [position_of(step, skipped) for step in range(7)] == [0, 1, 2, 5, 6, 8, 9]


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 8)), max_size=8))
def test_every_other_position_is_taken_once(pairs):
    skipped = united((first, first + size) for first, size in pairs)
    taken = [position_of(step, skipped) for step in range(50)]
    left_out = {position for first, end in skipped for position in range(first, end)}
    assert taken == [position for position in range(200) if position not in left_out][:50]


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 6)), max_size=6), st.integers(0, 30), st.integers(1, 9))
def test_skipping_moves_no_step_before_it(pairs, step, count):
    skipped = united((first, first + size) for first, size in pairs)
    now = position_of(step, skipped)
    more = united([*skipped, *next_positions(now, count, skipped)])
    assert [position_of(past, more) for past in range(step + 1)] == [
        position_of(past, skipped) for past in range(step + 1)
    ]
    assert count_of(more) == count_of(skipped) + count
    assert position_of(step + 1, more) == position_of(step + 1 + count, skipped)
