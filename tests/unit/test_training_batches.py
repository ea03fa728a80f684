"""Every batch is a function of (seed, step, rank, world): nothing repeated, nothing skipped, no state."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_ops.training.batches import BatchPlan, permuted
from deepseek_ops.training.errors import IndivisibleBatchError, TooFewSamplesError


@given(size=st.integers(1, 700), seed=st.integers(0, 2**32), epoch=st.integers(0, 50))
@settings(max_examples=60, deadline=None)
def test_an_epoch_is_a_permutation(size, seed, epoch):
    assert sorted(permuted(index, size, seed, epoch) for index in range(size)) == list(range(size))


def test_epochs_and_seeds_shuffle_differently():
    orders = {
        (seed, epoch): tuple(permuted(index, 200, seed, epoch) for index in range(200))
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(set(orders.values())) == 4
    assert tuple(range(200)) not in orders.values()


def test_the_shuffle_is_global():
    """Neighbours in the file are not neighbours in training: a batch draws from all over the data."""
    first = BatchPlan(seed=3, num_samples=10_000, batch_size=64).global_batch(0)
    quarters = Counter(index // 2_500 for index in first)
    assert set(quarters) == {0, 1, 2, 3}
    assert max(quarters.values()) < 40


@given(
    num_samples=st.integers(1, 300),
    ranks=st.sampled_from([1, 2, 4, 8]),
    micro=st.sampled_from([1, 2]),
    epochs=st.integers(1, 3),
)
@settings(max_examples=40, deadline=None)
def test_epochs_cover_every_sample_exactly_once(num_samples, ranks, micro, epochs):
    plan = BatchPlan(seed=1, num_samples=num_samples, batch_size=16, world_size=ranks, micro_batch_size=micro)
    seen: Counter[int] = Counter()
    for step in range(-(-epochs * num_samples // 16)):
        for rank in range(ranks):
            for micro_batch in plan.micro_batches(step, rank):
                seen.update(micro_batch)
    beyond = sum(seen.values()) - epochs * num_samples
    assert 0 <= beyond < 16, "only the last batch reaches into the next epoch"
    assert set(seen) == set(range(num_samples))
    assert sum(count - epochs for count in seen.values() if count > epochs) == beyond


@given(step=st.integers(0, 10**9), seed=st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_the_global_batch_does_not_depend_on_the_world_size(step, seed):
    alone = BatchPlan(seed=seed, num_samples=977, batch_size=32).global_batch(step)
    for ranks in (2, 4, 8):
        plan = BatchPlan(seed=seed, num_samples=977, batch_size=32, world_size=ranks, micro_batch_size=2)
        together = [index for rank in range(ranks) for batch in plan.micro_batches(step, rank) for index in batch]
        assert tuple(together) == alone


def test_micro_batches_keep_the_global_batch():
    plan = BatchPlan(seed=0, num_samples=50, batch_size=24, world_size=2, micro_batch_size=3)
    assert plan.accumulation_steps == 4
    assert [len(batch) for batch in plan.micro_batches(0, 1)] == [3, 3, 3, 3]


def test_an_indivisible_batch_names_all_numbers_and_a_remedy():
    with pytest.raises(IndivisibleBatchError) as caught:
        BatchPlan(seed=0, num_samples=50, batch_size=30, world_size=4, micro_batch_size=2)
    assert "batch_size=30" in str(caught.value)
    assert "2 x 4 = 8" in str(caught.value)
    assert "24" in str(caught.value)


def test_no_samples_at_all_is_an_error():
    with pytest.raises(TooFewSamplesError, match="lower sequence_length"):
        BatchPlan(seed=0, num_samples=0, batch_size=4)


@pytest.mark.parametrize("share", [0.2, 0.25, 0.5, 0.9])
def test_replay_mixes_in_its_share_exactly_and_evenly(share):
    plan = BatchPlan(7, num_samples=50, batch_size=8, replay_samples=30, replay_share=share)
    old = 0
    for step in range(100):
        batch = plan.global_batch(step)
        old += sum(index >= 50 for index in batch)
        assert abs(old - share * 8 * (step + 1)) < 1, "never more than a sample off"
        assert all(0 <= index < 80 for index in batch)


def test_replay_repeats_no_new_sample_within_an_epoch_and_every_world_sees_the_same():
    plan = BatchPlan(7, num_samples=48, batch_size=8, replay_samples=30, replay_share=0.25)
    assert plan.epoch_samples == 64
    drawn = [index for step in range(8) for index in plan.global_batch(step)]
    assert sorted(index for index in drawn if index < 48) == list(range(48))
    replayed = [index for index in drawn if index >= 48]
    assert len(set(replayed)) == len(replayed) == 16
    for world in (2, 4):
        cut = BatchPlan(7, 48, 8, world, 1, replay_samples=30, replay_share=0.25)
        assert tuple(i for rank in range(world) for part in cut.micro_batches(3, rank) for i in part) == tuple(
            plan.global_batch(3)
        )


def test_a_micro_batch_knows_the_global_batch_it_is_of():
    plan = BatchPlan(7, num_samples=48, batch_size=8, world_size=2, micro_batch_size=2)
    part = next(plan.micro_batches(5, 1))
    assert part.whole == plan.global_batch(5)
    assert part.parts == 4


def test_replay_of_nothing_is_refused():
    with pytest.raises(TooFewSamplesError, match="replayed train"):
        BatchPlan(7, num_samples=48, batch_size=8, replay_share=0.25)
