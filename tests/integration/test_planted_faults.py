"""Faults planted into real trainings end or heal as the rules say, in the same step on every rank."""

from __future__ import annotations

import pytest
from fixtures_launcher import until
from fixtures_planted_faults import outcome, submit_planted
from fixtures_trainer import dataset, lab  # noqa: F401  (pytest fixtures)

from deepseek_ops.core.jobs import JobPhase

pytestmark = pytest.mark.slow

STEPS = 56
BAD_BATCHES = [{"kind": "bad_batch", "position": 30, "positions": 5, "rank": 1}]


@pytest.fixture(scope="module")
def planted(lab, dataset):  # noqa: F811
    """Return a function that trains with faults and returns what came of it."""

    def start(name, faults, *, alerts=None, kill_after=None, **changes):
        settings = {"nonce": name, "checkpoint_steps": 8, "eval_steps": STEPS, "hyperparameters": {"max_steps": STEPS}}
        submit_planted(lab, name, lab.plan(dataset, **{**settings, **changes}), faults, alerts)
        if kill_after is not None:
            lab.kill_rank(name, 0, after_step=kill_after)
        return outcome(lab, name)

    return start


@pytest.fixture(scope="module")
def clean(planted):
    return planted("clean", [])


@pytest.fixture(scope="module")
def skipped(planted):
    return planted("bad-batches", BAD_BATCHES)


def within_two_percent(found, clean):
    return abs(found.final_loss / clean.final_loss - 1) < 0.02


def test_the_guardian_is_silent_on_a_healthy_run(clean):
    assert clean.status.phase is JobPhase.SUCCEEDED, clean.log[-3000:]
    assert clean.of("alert") == clean.of("guardian") == clean.of("acted") == []


def test_bad_batches_are_skipped_where_deepspeed_skips_the_steps(skipped, clean):
    """Three skipped steps in a row: the four batches that come next are left out, two of them bad."""
    assert skipped.status.phase is JobPhase.SUCCEEDED, skipped.log[-3000:]
    assert skipped.actions == [(33, "skip_batches")]
    assert skipped.acted_together
    (action,) = skipped.of("guardian")
    assert action["positions_skipped"] == [[33, 37]]
    assert action["samples_skipped"] == 4 * 8
    assert (action["action_attempt"], action["max_attempts"], action["evidence"]) == (1, 2, ["1.0", "1.0", "1.0"])
    assert [step for step, row in skipped.rows.items() if row["skipped"]] == [31, 32, 33]
    assert within_two_percent(skipped, clean)


def test_a_run_that_is_killed_after_an_action_repeats_it_and_nothing_else(planted, skipped):
    """The checkpoint is from before the action, the ledger from after it: the losses are the same to the last bit."""
    killed = planted("bad-batches-killed", BAD_BATCHES, kill_after=34, checkpoint_steps=16)
    assert killed.status.phase is JobPhase.SUCCEEDED, killed.log[-3000:]
    assert killed.status.restarts == 1
    assert {event["from_step"] for event in killed.of("resumed")} == {16}
    assert killed.actions == [(33, "skip_batches")], "once, though the step ran twice"
    assert [event["repeated"] for event in killed.of("alert", metric="skipped")] == [False, True]
    assert {step: row["training_loss"] for step, row in killed.rows.items()} == {
        step: row["training_loss"] for step, row in skipped.rows.items()
    }


def test_poisoned_weights_are_rewound_until_their_batch_is_found(planted, clean):
    """Without ZeRO a NaN gradient goes into the weights, and its own loss was good: it shows a step later.

    The first rewind leaves out the batch that showed it, the second begins a batch earlier and has the cause.
    """
    healed = planted("broken", [{"kind": "broken", "position": 41, "rank": 1}], zero_stage=0)
    assert healed.status.phase is JobPhase.SUCCEEDED, healed.log[-3000:]
    assert healed.actions == [(43, "rewind"), (43, "rewind")]
    assert healed.acted_together
    first, second = healed.of("guardian")
    assert (first["positions_skipped"], second["positions_skipped"][0][0]) == ([[42, 43]], 41)
    assert first["went_to"] == second["went_to"] == 32
    poisoned = {event["step"] for event in healed.of("metric") if event["poisoned"]}
    assert poisoned == {43}
    assert not poisoned & {event["step"] for event in healed.of("checkpoint")}
    assert within_two_percent(healed, clean)


def test_a_ladder_ends_where_it_says(planted):
    """A poison that covers all data: two rewinds, then the end, and no checkpoint of it."""
    ladder = [{"metric": "poisoned", "condition": "value > 0",
               "actions": [{"type": "rewind", "max_attempts": 2}, {"type": "stop_training"}]}]  # fmt: skip
    faults = [{"kind": "bad_batch", "position": 36, "positions": 1000, "rank": 0}]
    ended = planted("all-poisoned", faults, alerts=ladder, zero_stage=0)
    assert ended.status.phase is JobPhase.STOPPED
    assert "poisoned: value > 0" in ended.status.reason
    assert [action for _, action in ended.actions] == ["rewind", "rewind", "stop_training"]
    assert ended.acted_together
    assert max(int(str(event["step"])) for event in ended.of("checkpoint")) < 37


def test_weights_that_go_wrong_are_rewound(planted, clean):
    """A learning rate 300 times too high for a step; the pipeline file's rule sees the loss and goes back."""
    rule = {
        "metric": "training_loss",
        "condition": "value > 1.25 * median(16)",
        "for": "2 steps",
        "actions": [{"type": "slack", "channel": "#training"}, {"type": "rewind"}, {"type": "stop_training"}],
    }
    healed = planted("spike", [{"kind": "spike", "step": 36, "factor": 300.0}], alerts=[rule])
    assert healed.status.phase is JobPhase.SUCCEEDED, healed.log[-3000:]
    assert healed.actions == [(38, "rewind")]
    assert healed.acted_together
    (told,) = healed.of("alert")
    assert told["notify"] == [{"type": "slack", "connection": "slack_default", "channel": "#training"}]
    assert within_two_percent(healed, clean)


def test_people_are_obeyed_in_one_step_by_all_ranks(lab, dataset):  # noqa: F811
    plan = lab.plan(dataset, nonce="asked", checkpoint_steps=8, eval_steps=STEPS, hyperparameters={"max_steps": STEPS})
    slow = [{"kind": "slow", "step": 1, "steps": 1000, "seconds": 0.1}]
    name = submit_planted(lab, "asked", plan, slow)

    def reached(step):
        until(lambda: (lab.launcher.status(name).step or 0) >= step, within=200)

    reached(3)
    lab.launcher.ask(name, "checkpoint", by="ada")
    reached(28)
    lab.launcher.ask(name, "rewind", step=20, by="ada")
    asked = outcome(lab, name)
    assert asked.status.phase is JobPhase.SUCCEEDED, asked.log[-3000:]
    saved, rewound = asked.of("guardian", by="ada")
    assert (saved["action"], saved["done"]) == ("checkpoint", True)
    assert saved["step"] in {event["step"] for event in asked.of("checkpoint", reason="request")}
    assert (rewound["action"], rewound["went_to"]) == ("rewind", 16)
    assert rewound["positions_skipped"] == [[20, rewound["step"]]], "what was trained on since is left out"
    assert asked.acted_together
