"""When a trial is stopped early."""

from __future__ import annotations

import math
import random

import pytest

from deepseek_ops.core.records import Trial
from deepseek_ops.tuning import should_prune


def trials_with(*values_at_rung: float, step: int = 20, state: str = "complete") -> list[Trial]:
    return [
        Trial(study="s", number=n, values={"x": n}, state=state, curve=((10, 9.0), (step, value)))
        for n, value in enumerate(values_at_rung)
    ]


class TestAsha:
    def test_the_first_to_reach_a_rung_goes_on(self):
        assert not should_prune([], [(10, 5.0), (20, 4.0)], pruner="asha")

    def test_the_worse_half_ends_at_a_rung(self):
        others = trials_with(1.0, 2.0, 3.0)
        assert not should_prune(others, [(10, 9.0), (20, 1.5)], pruner="asha")
        assert should_prune(others, [(10, 9.0), (20, 2.5)], pruner="asha")

    def test_between_rungs_nobody_ends(self):
        others = trials_with(1.0, 2.0, 3.0)
        assert not should_prune(others, [(10, 99.0)], pruner="asha")
        assert not should_prune(others, [(10, 99.0), (15, 99.0), (20, 99.0)], pruner="asha")

    def test_running_trials_are_rivals_and_failed_ones_are_not(self):
        poor = [(10, 9.0), (20, 5.0)]
        assert should_prune(trials_with(1.0, state="running"), poor, pruner="asha")
        assert not should_prune(trials_with(1.0, state="failed"), poor, pruner="asha")

    def test_trials_that_did_not_reach_the_step_are_no_rivals(self):
        assert not should_prune(trials_with(1.0, step=15), [(10, 9.0), (20, 5.0)], pruner="asha")

    def test_upwards_is_the_mirror_of_downwards(self):
        source = random.Random(3)  # noqa: S311
        for _ in range(200):
            values = [source.uniform(0, 9) for _ in range(source.randint(0, 6))]
            mine = source.uniform(0, 9)
            down = should_prune(trials_with(*values), [(10, 9.0), (20, mine)], pruner="asha")
            mirrored = trials_with(*(-value for value in values))
            assert down is should_prune(mirrored, [(10, 9.0), (20, -mine)], pruner="asha", direction="maximize")

    def test_a_sweep_saves_steps_and_keeps_its_best(self):
        source = random.Random(0)  # noqa: S311
        finals = [source.uniform(6, 8) for _ in range(36)]
        done: list[Trial] = []
        steps = 0
        for number, final in enumerate(finals):
            curve: list[tuple[int, float]] = []
            for report in range(1, 13):
                curve.append((10 * report, final + 3 / report))
                if should_prune(done, curve, pruner="asha"):
                    break
            steps += curve[-1][0]
            state = "complete" if len(curve) == 12 else "pruned"
            done.append(Trial(study="s", number=number, state=state, curve=tuple(curve), objective=curve[-1][1]))
        kept = [one for one in done if one.state == "complete"]
        assert min(range(36), key=finals.__getitem__) in [one.number for one in kept]
        assert steps < 0.6 * 36 * 120


class TestMedian:
    def test_says_nothing_before_four_others_got_there(self):
        curve = [(10, 9.0), (20, 99.0)]
        assert not should_prune(trials_with(1.0, 2.0, 3.0), curve, pruner="median")
        assert should_prune(trials_with(1.0, 2.0, 3.0, 4.0), [(10, 99.0), (20, 99.0)], pruner="median")

    def test_the_best_value_so_far_counts(self):
        others = trials_with(1.0, 2.0, 3.0, 4.0)
        assert not should_prune(others, [(10, 2.4), (20, 99.0)], pruner="median")
        assert should_prune(others, [(10, 2.6), (20, 2.6)], pruner="median")
        up = trials_with(1.0, 2.0, 3.0, 4.0)
        assert should_prune(up, [(10, 2.4), (20, 2.4)], pruner="median", direction="maximize")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_diverged_ends_at_once_unless_nothing_is_pruned(value):
    assert should_prune([], [(10, value)], pruner="asha")
    assert should_prune([], [(10, value)], pruner="median")
    assert not should_prune([], [(10, value)], pruner="none")


def test_none_never_ends_a_trial():
    assert not should_prune(trials_with(1.0, 1.0, 1.0, 1.0), [(10, 99.0), (20, 99.0)], pruner="none")


def test_no_report_is_no_reason():
    assert not should_prune(trials_with(1.0), [], pruner="asha")
