"""Packing is a pure function that loses nothing and leaves little room."""

from __future__ import annotations

import random

import pytest

from deepseek_ops.training.packing import CHUNK, pack


@pytest.mark.parametrize("count", [1, 50, CHUNK + 100])
def test_every_sample_lies_in_one_window_and_no_window_is_too_full(count):
    chance = random.Random(count)  # noqa: S311
    sizes = [chance.randrange(1, 65) for _ in range(count)]
    packing = pack(sizes, 64)
    windows = [list(packing.window(number)) for number in range(len(packing))]
    assert sorted(member for window in windows for member in window) == list(range(count))
    assert all(0 < sum(sizes[member] for member in window) <= 64 for window in windows)


def test_long_and_short_samples_fill_windows_together():
    chance = random.Random(1)  # noqa: S311
    sizes = [min(512, int(chance.lognormvariate(4.5, 0.8)) + 2) for _ in range(5000)]
    assert sum(sizes) / (len(pack(sizes, 512)) * 512) > 0.95


def test_equal_samples_pack_equally_and_what_is_left_out_lies_nowhere():
    sizes = [5, 0, 7, 3, 0, 9]
    assert pack(sizes, 12) == pack(list(sizes), 12)
    assert sorted(pack(sizes, 12).order) == [0, 2, 3, 5]


def test_a_chunk_does_not_change_the_windows_of_another():
    chance = random.Random(3)  # noqa: S311
    first = [chance.randrange(1, 64) for _ in range(CHUNK)]
    alone, followed = pack(first, 64), pack([*first, 1, 2, 3], 64)
    assert [list(followed.window(number)) for number in range(len(alone))] == [
        list(alone.window(number)) for number in range(len(alone))
    ]


def test_a_sample_larger_than_a_window_is_a_mistake():
    with pytest.raises(ValueError, match="sample 1 has 13 places, a window 12"):
        pack([3, 13], 12)
