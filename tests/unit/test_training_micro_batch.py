"""After a device ran out of memory: smaller bites, the same global batch, and an end where nothing is left to cut."""

from __future__ import annotations

import pytest

from deepseek_ops.core.records import DatasetVersion, Hyperparameters, TrainingPlan
from deepseek_ops.training.deepspeed_config import deepspeed_config
from deepseek_ops.training.micro_batch import SmallestBatchError, in_smaller_bites


def plan(batch: int = 32, **changes: object) -> TrainingPlan:
    dataset = DatasetVersion(name="corpus", version="d" * 64, tree="f" * 64, num_files=1, num_bytes=1)
    values = Hyperparameters(learning_rate=1e-3, batch_size=batch, max_steps=1)
    body = {"dataset": dataset, "model": {"model_type": "deepseek_v3"}, "hyperparameters": values, **changes}
    return TrainingPlan.model_validate(body)


@pytest.mark.parametrize(("divisor", "micro", "accumulation"), [(1, 16, 1), (2, 8, 2), (4, 4, 4), (16, 1, 16)])
def test_the_global_batch_is_kept(divisor: int, micro: int, accumulation: int) -> None:
    config = deepspeed_config(in_smaller_bites(plan(), 2, divisor), world_size=2)
    assert config["train_batch_size"] == 32
    assert config["train_micro_batch_size_per_gpu"] == micro
    assert config["gradient_accumulation_steps"] == accumulation


def test_a_batch_that_does_not_halve_is_cut_into_the_next_smaller_even_share() -> None:
    assert deepspeed_config(in_smaller_bites(plan(15), 1, 2))["train_micro_batch_size_per_gpu"] == 5


def test_the_plan_that_names_the_run_is_another_one_only_where_it_is_cut() -> None:
    assert in_smaller_bites(plan(), 2, 1) == plan()


def test_one_sample_cannot_be_cut_and_the_error_says_what_helps() -> None:
    with pytest.raises(SmallestBatchError, match="gradient_checkpointing"):
        in_smaller_bites(plan(8), 8, 2)
