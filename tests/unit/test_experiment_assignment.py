"""Assignment is sticky, uniform, independent between experiments, and monotone while a share grows."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_ops.experiment import BUCKETS, InvalidSharesError, assign, bucket

units = st.text(max_size=50)
salts = st.text(max_size=20)
UNITS = [f"user-{number}" for number in range(20_000)]


@given(units, salts)
def test_a_unit_has_one_bucket(unit: str, salt: str) -> None:
    assert bucket(unit, salt) == bucket(unit, salt)
    assert 0 <= bucket(unit, salt) < BUCKETS


def test_another_process_gives_the_same_answer() -> None:
    code = "from deepseek_ops.experiment import bucket; print([bucket(f'u{n}', 'exp-1') for n in range(5)])"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str([bucket(f"u{n}", "exp-1") for n in range(5)])


def test_a_release_must_not_move_anybody() -> None:
    assert [bucket(f"u{n}", "exp-1") for n in range(4)] == [3009, 5476, 4500, 3262]


@given(units, salts, st.floats(0, 100), st.floats(0, 100))
def test_a_growing_share_moves_nobody_out(unit: str, salt: str, one: float, other: float) -> None:
    small, large = sorted((one, other))
    before = assign(unit, salt=salt, control="a", shares={"b": small})
    after = assign(unit, salt=salt, control="a", shares={"b": large})
    assert (before, after) != ("b", "a")


@given(units, salts, st.floats(0, 50), st.floats(0, 50), st.floats(0, 50))
def test_growing_the_last_variant_moves_only_control_units(
    unit: str, salt: str, first: float, one: float, other: float
) -> None:
    small, large = sorted((one, other))
    before = assign(unit, salt=salt, control="a", shares={"b": first, "c": small})
    after = assign(unit, salt=salt, control="a", shares={"b": first, "c": large})
    assert before == after or (before, after) == ("a", "c")


@given(units, salts)
def test_nothing_and_everything_are_exact(unit: str, salt: str) -> None:
    assert assign(unit, salt=salt, control="a", shares={"b": 0}) == "a"
    assert assign(unit, salt=salt, control="a", shares={"b": 100}) == "b"
    assert assign(unit, salt=salt, control="a", shares={}) == "a"


def test_shares_are_met() -> None:
    given_out = [assign(unit, salt="s", control="a", shares={"b": 20, "c": 5.5}) for unit in UNITS]
    assert given_out.count("b") / len(UNITS) == pytest.approx(0.2, abs=0.012)  # 4 sigma
    assert given_out.count("c") / len(UNITS) == pytest.approx(0.055, abs=0.007)


def test_experiments_with_other_salts_are_independent() -> None:
    both = sum(bucket(unit, "one") < 5000 and bucket(unit, "two") < 5000 for unit in UNITS)
    assert both / len(UNITS) == pytest.approx(0.25, abs=0.013)


def test_salt_and_unit_do_not_run_into_each_other() -> None:
    assert [bucket(f":{n}", "a") for n in range(8)] != [bucket(f"{n}", "a:") for n in range(8)]


@pytest.mark.parametrize("shares", [{"b": -1}, {"b": 100.1}, {"b": float("nan")}, {"b": 60, "c": 60}])
def test_shares_that_cannot_be_given_out_are_named(shares: dict[str, float]) -> None:
    with pytest.raises(InvalidSharesError, match="b="):
        assign("u", salt="s", control="a", shares=shares)
