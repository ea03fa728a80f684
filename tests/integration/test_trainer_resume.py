"""A training cannot be lost: killed ranks go on bit for bit where the last checkpoint was."""

from __future__ import annotations

import pytest
from fixtures_trainer import dataset, lab  # noqa: F401  (pytest fixtures)

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    ("stage", "precision", "killed"),
    [
        (2, "fp32", 1),
        (3, "bf16", 1),
        # Every stage and precision resumes bit by bit in test_trainer_checkpoints, without a kill.
        pytest.param(1, "fp32", 0, marks=pytest.mark.heavy),
        pytest.param(0, "fp32", 0, marks=pytest.mark.heavy),
    ],
)
def test_a_killed_rank_changes_nothing_in_the_result(lab, dataset, stage, precision, killed):  # noqa: F811
    """Losses of every step and the bytes of the published model equal those of a run that was left alone."""
    settings = {"zero_stage": stage, "precision": precision, "hyperparameters": {"max_steps": 40}}
    label = f"zero{stage}-{precision}"
    alone = lab.trained(f"{label}-alone", lab.plan(dataset, nonce="alone", **settings))
    name = lab.train(f"{label}-killed", lab.plan(dataset, nonce="killed", **settings))
    lab.kill_rank(name, killed, after_step=12)
    again = type(alone).load(lab.result(name))

    assert again.restarts == 1
    (resumed,) = lab.events(name, "resumed")
    assert resumed["from_step"] in (8, 16, 24, 32), "it went on from a checkpoint"
    undisturbed, disturbed = lab.rows(f"{label}-alone"), lab.rows(name)
    assert sorted(disturbed) == list(range(1, 41))
    for metric in ("training_loss", "learning_rate", "expert_load_max"):
        assert [disturbed[step][metric] for step in range(1, 41)] == [
            undisturbed[step][metric] for step in range(1, 41)
        ], metric
    assert again.model == alone.model
    assert again.curve == alone.curve
    assert again.metrics["val_loss"] == alone.metrics["val_loss"]


def test_every_step_of_both_lives_saw_the_same_losses(lab, dataset):  # noqa: F811
    """Steps between the checkpoint and the kill run twice; both times they give the same loss."""
    name = lab.train("twice", lab.plan(dataset, nonce="twice", hyperparameters={"max_steps": 40}))
    lab.kill_rank(name, 1, after_step=13)
    lab.result(name)
    seen: dict[int, set[float]] = {}
    for event in lab.events(name, "metric"):
        seen.setdefault(event["step"], set()).add(event["training_loss"])
    assert all(len(losses) == 1 for losses in seen.values())
    assert len(lab.events(name, "metric")) > 40, "some steps did run twice"


def test_a_half_written_checkpoint_is_not_resumed_from(lab, dataset):  # noqa: F811
    plan = lab.plan(dataset, nonce="half", hyperparameters={"max_steps": 40})
    name = lab.train("half", plan)
    lab.kill_rank(name, 0, after_step=17)
    lab.result(name)
    work = lab.root / "jobs" / name / "work"
    assert not list(work.glob("checkpoints/*")), "checkpoints are removed once the result is stored"
