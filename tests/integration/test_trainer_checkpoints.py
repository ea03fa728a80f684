"""Checkpoints of real engines on real ranks: exact to the last bit, in place, elsewhere, and with other ranks."""

from __future__ import annotations

import pytest
from fixtures_checkpoints import EVERY, environment
from fixtures_trainer import lab  # noqa: F401  (pytest fixture)

pytestmark = pytest.mark.slow

CASES = [[0, "fp32"], [1, "fp32"], [2, "bf16"], [3, "fp32"]]
LABELS = [f"zero{stage}-{precision}" for stage, precision in CASES]


def done(lab, work, ranks, payload, name):  # noqa: F811
    """Return what a job of the fixtures came to."""
    fields = {"num_ranks": ranks, "environment": environment(work), "max_restarts": 0}
    return lab.result(lab.submit("train", name, payload, **fields))


@pytest.fixture(scope="module")
def resumed(lab, tmp_path_factory):  # noqa: F811
    """Every case trained on two ranks, resumed and rewound; then on one rank; then on two again."""
    payload = {"root": str(tmp_path_factory.mktemp("checkpoints")), "cases": CASES}
    two = done(lab, "exact", 2, payload, "checkpoints-exact")
    one = done(lab, "other_world", 1, payload, "checkpoints-one-rank")
    again = done(lab, "other_world", 2, payload, "checkpoints-two-ranks")
    return two, one, again


@pytest.mark.parametrize("label", LABELS)
def test_resumed_and_rewound_trainings_equal_one_that_was_left_alone_bit_by_bit(resumed, label):
    """Loss of every step, and weights, optimiser and expert biases at the end; the rewind is in place."""
    found = resumed[0][label]
    assert found["from_step"] == 6
    assert found["losses"] == [True] * 10
    assert found["weights"]


@pytest.mark.parametrize("label", LABELS)
def test_only_a_checkpoint_with_enough_clean_steps_behind_it_is_rewound_to(resumed, label):
    found = resumed[0][label]
    assert found["too_early"] is None
    assert found["rewound_to"] == 6
    assert found["rewinds"] == ["002-000-000", "002-000-001"]


@pytest.mark.parametrize("label", LABELS)
def test_other_numbers_of_ranks_go_on_where_the_checkpoint_was(resumed, label):
    """Two ranks, then one, then two: losses within rounding, biases equal, weight decay of each group kept."""
    two, one, again = (part[label] for part in resumed)
    tolerance = 1e-4 if label.endswith("fp32") else 3e-2
    assert one["from_step"] == 6
    assert again["from_step"] == 8
    assert one["biases"] == two["biases"]
    assert any(two["biases"]), "biases that are all zero would prove nothing"
    assert one["decays_kept"]
    assert again["decays_kept"]
    assert one["counted"] == [8.0], "steps that the optimiser corrects its moments for"
    assert again["counted"] == [10.0]
    for part in (one, again):
        for step, loss in part["losses"].items():
            assert loss == pytest.approx(two["straight"][int(step) - 1], abs=tolerance), (label, step)
        assert "loss_continuity" in part["said"]
        assert not [name for name in part["left"] if "universal" in name], "the converted copy is gone"


@pytest.fixture(scope="module")
def troubled(lab, tmp_path_factory):  # noqa: F811
    """What came of a full disk, a store that is away, a poisoned step, a damaged file and a lost machine."""
    payload = {"root": str(tmp_path_factory.mktemp("troubles"))}
    return done(lab, "troubles", 2, payload, "checkpoints-troubles")


def test_a_full_disk_costs_one_checkpoint_and_the_training_goes_on(troubled):
    assert troubled["after_full_disk"] == [EVERY], "the one before stays, the cut one is gone"
    assert troubled["problem"] == ["No space left on device"]
    assert troubled["before_poison"] == [12, 16], "the next ones were taken"


def test_a_store_that_is_away_delays_the_upload_and_nothing_else(troubled):
    said = troubled["said"]
    assert said.count("checkpoint_upload_delayed") == 1
    assert said.index("checkpoint_upload_delayed") < said.index("checkpoint_upload_resumed")
    assert troubled["resumed_from"] == 16


def test_nobody_goes_on_from_a_checkpoint_that_poison_followed(troubled):
    """Step 20 was saved, step 21 was unclean: 20 is gone, and the next life begins at 16."""
    assert 20 not in troubled["after_poison"]
    assert troubled["after_poison_from"] == 16


def test_a_damaged_checkpoint_is_fetched_again(troubled):
    assert troubled["after_damage_from"] == 16
    assert troubled["after_damage_said"] == ["store"]


def test_another_machine_goes_on_from_the_store_to_the_last_bit(troubled):
    assert troubled["elsewhere_from"] == 16
    assert troubled["elsewhere_source"] == ["store"]
    assert troubled["elsewhere_equal"]


def test_a_restart_that_finds_its_disk_wiped_asks_the_store(troubled):
    assert troubled["after_a_wiped_disk_from"] == 16, "and does not begin anew"


def test_the_proof_knows_what_every_machine_has_done(troubled):
    (proof,) = troubled["proof"]
    assert proof["exact"]
    assert (proof["samples_repeated"], proof["samples_skipped"]) == (0, 0)
    assert [life["steps"] for life in proof["lives"]] == [[[1, 16]], [[17, 24]]]


def test_nothing_is_left_once_the_result_is_stored(troubled):
    assert troubled["left"] == []
    assert not troubled["left_on_disk"]


def test_an_automatic_interval_takes_one_checkpoint_to_measure_and_then_waits(troubled):
    automatic = troubled["automatic"]
    assert automatic["steps"] == [10]
    (interval,) = automatic["intervals"]
    assert interval["steps"] > 100, "a checkpoint of milliseconds, and a day between failures"
    assert "Daly" in interval["source"]


def test_machines_send_the_next_checkpoint_when_the_one_before_is_whole(troubled):
    """The second machine's part of step 4 waits until step 13: steps 8 and 12 are nobody's, step 16 is the next."""
    assert troubled["machines"] == {"whole": [4, 16], "sent": [4, 16]}
