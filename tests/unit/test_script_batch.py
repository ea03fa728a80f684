"""The step of a script's Trainer stays the one it began with: by accumulation, or the training is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from deepseek_ops.core.records import DatasetVersion, Hyperparameters, TrainingPlan
from deepseek_ops.jobs.hf_batch import Batches, UnkeptBatchError

DATASET = DatasetVersion(name="none", version="0" * 64, tree="0" * 64, num_files=0, num_bytes=0)


def plan_of(ranks: int, *, batch: int = 1000) -> TrainingPlan:
    hyper = Hyperparameters(learning_rate=0.01, batch_size=batch, max_steps=2, sequence_length=16)
    return TrainingPlan(dataset=DATASET, model={}, num_nodes=ranks, hyperparameters=hyper)


class Settings(SimpleNamespace):
    """What of transformers' arguments decides a step."""

    def __init__(self, each: int, accumulation: int, ranks: int, **more: object) -> None:
        super().__init__(
            each=each,
            gradient_accumulation_steps=accumulation,
            world_size=ranks,
            train_sampling_strategy="random",
            accelerator_config=SimpleNamespace(split_batches=False),
        )
        self.__dict__.update(more)


def trainer_of(each: int, accumulation: int, ranks: int, *, deepspeed: bool = False, **more: object):
    args = Settings(each, accumulation, ranks, **more)
    return SimpleNamespace(
        args=args,
        is_deepspeed_enabled=deepspeed,
        _train_batch_size=each,
        get_total_train_batch_size=lambda args: each * args.gradient_accumulation_steps * ranks,
    )


def checkpoint_of(trainer, plan: TrainingPlan, *, length: int = 64):
    """Return what a checkpoint of the trainer remembers."""
    batches = Batches(plan, "train.py", lambda *_, **__: None)
    with batches.kept(trainer, None):
        steps = trainer.args.gradient_accumulation_steps
        batches.begun([0] * length, steps)
    return batches.dump()


def goes_on(trainer, plan: TrainingPlan, state=None, *, length: int = 64) -> tuple[int, list[str]]:
    """Return the accumulation that a training goes on with, and what is said of it."""
    said: list[str] = []
    batches = Batches(plan, "train.py", lambda kind, **_: said.append(kind))
    own = trainer.args.gradient_accumulation_steps
    with batches.kept(trainer, state):
        steps = int(trainer.args.gradient_accumulation_steps)
        batches.begun([0] * length, steps)
    assert trainer.args.gradient_accumulation_steps == own, "the script's own again"
    return steps, said


def test_fewer_and_more_ranks_take_the_samples_that_a_step_began_with() -> None:
    plan = plan_of(4)
    state = checkpoint_of(trainer_of(2, 2, 4), plan)
    assert goes_on(trainer_of(2, 2, 4), plan, state) == (2, [])
    assert goes_on(trainer_of(2, 2, 2), plan, state, length=128) == (4, ["batch_kept"])
    assert goes_on(trainer_of(2, 2, 1), plan, state, length=256) == (8, ["batch_kept"])
    assert goes_on(trainer_of(2, 2, 8), plan, state, length=32) == (1, ["batch_kept"])
    assert goes_on(trainer_of(2, 8, 1), plan, state, length=256) == (8, []), "a script that follows the ranks itself"


def test_before_the_first_checkpoint_the_plans_ranks_count() -> None:
    assert goes_on(trainer_of(2, 1, 1), plan_of(4)) == (4, ["batch_kept"])
    assert goes_on(trainer_of(8, 1, 1), plan_of(4, batch=8)) == (1, []), "it shares the plan's batch by itself"


def test_a_checkpoint_of_an_earlier_release_knows_its_ranks() -> None:
    assert goes_on(trainer_of(2, 1, 1), plan_of(4), {"world_size": 2}) == (2, ["batch_kept"])


def test_what_does_not_divide_is_refused_with_both_numbers_and_the_sizes_that_do() -> None:
    plan = plan_of(2)
    state = checkpoint_of(trainer_of(4, 1, 2), plan)
    expected = (
        "train.py was trained by 2 ranks and cannot go on with 3: its steps are of 8 samples, and 3 ranks take 12 at a "
        "time. Let per_device_train_batch_size x ranks divide 8, or run it on 1 or 2 ranks."
    )
    with pytest.raises(UnkeptBatchError) as refused:
        goes_on(trainer_of(4, 1, 3), plan, state)
    assert str(refused.value) == expected


@pytest.mark.parametrize(
    ("more", "why"),
    [
        ({"deepspeed": True}, "DeepSpeed's checkpoint of a script is cut by ranks"),
        ({"train_sampling_strategy": "group_by_length"}, "order the samples differently"),
        ({"steps_per_generation": 1}, "cuts its batches of prompts"),
    ],
)
def test_an_order_that_follows_the_accumulation_is_refused(more, why: str) -> None:
    plan = plan_of(2)
    state = checkpoint_of(trainer_of(4, 1, 2, **more), plan)
    assert goes_on(trainer_of(4, 1, 2, **more), plan, state) == (1, [])
    with pytest.raises(UnkeptBatchError, match=why):
        goes_on(trainer_of(4, 1, 1, **more), plan, state)


def test_an_epoch_of_other_steps_is_refused() -> None:
    """With dataloader_drop_last, 27 samples are 3 steps of 2 x 4 samples, and 6 batches of 4 on one rank."""
    plan = plan_of(2)
    state = checkpoint_of(trainer_of(4, 1, 2), plan, length=3)
    assert goes_on(trainer_of(4, 1, 1), plan, state, length=6) == (2, ["batch_kept"])
    with pytest.raises(UnkeptBatchError, match="its epoch of 3 steps would have 4"):
        goes_on(trainer_of(4, 1, 1), plan, state, length=7)
