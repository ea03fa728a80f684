"""Which trial comes next, and which was best."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepseek_ops.core.config import load_pipeline
from deepseek_ops.core.records import Trial
from deepseek_ops.tuning import SearchExhaustedError, best, next_trials, search_space, suggest

SAMPLERS = ("tpe", "random", "grid")


def space_of(hyperparameters: str):
    return search_space(load_pipeline(f"training: {{hyperparameters: {hyperparameters}}}", file="f").training)


GRID = space_of("{learning_rate: [0.001, 0.0005, 0.0001], batch_size: [32, 64, 128], epochs: 1}")
RANGES = space_of(
    "{learning_rate: {range: [1e-5, 1e-1], log: true}, weight_decay: {range: [0, 0.3], step: 0.1},"
    " batch_size: {range: [1, 100000]}}"
)


def trial(number: int, values, state="complete", objective=None, curve=()):
    return Trial(study="s", number=number, values=values, state=state, objective=objective, curve=curve)


class TestSpace:
    def test_fixed_hyperparameters_are_not_searched(self):
        assert [one.name for one in GRID.dimensions] == ["learning_rate", "batch_size"]

    def test_a_grid_has_every_combination_once(self):
        points = [tuple(values.items()) for values in GRID.grid()]
        assert len(points) == len(set(points)) == GRID.size == 9
        assert list(GRID.grid())[:2] == [
            {"learning_rate": 0.001, "batch_size": 32},
            {"learning_rate": 0.001, "batch_size": 64},
        ]

    def test_a_stepped_range_is_a_list_of_tidy_values(self):
        decay = RANGES.dimensions[1]
        assert decay.choices == (0, 0.1, 0.2, 0.3)
        assert RANGES.size is None

    def test_without_dimensions_there_is_one_combination(self):
        assert space_of("{epochs: 1}").size == 1


@pytest.mark.parametrize("sampler", SAMPLERS)
class TestFiniteSpace:
    def test_rounds_visit_every_combination_once_and_then_end(self, sampler):
        trials: list[Trial] = []
        while fresh := next_trials(GRID, trials, study="s", count=2, sampler=sampler, seed=1):
            trials += [one.evolve(state="complete", objective=float(one.number)) for one in fresh]
        assert len({tuple(one.values.values()) for one in trials}) == len(trials) == 9
        assert [one.number for one in trials] == list(range(9))
        with pytest.raises(SearchExhaustedError, match="9 combinations"):
            suggest(GRID, trials, number=9, sampler=sampler, seed=1)

    def test_a_combination_that_runs_now_is_not_given_out_again(self, sampler):
        points = list(GRID.grid())
        trials = [trial(n, values, state="running") for n, values in enumerate(points[:8])]
        assert suggest(GRID, trials, number=8, sampler=sampler, seed=0) == points[8]

    def test_a_trial_that_failed_says_nothing_about_its_values(self, sampler):
        points = list(GRID.grid())
        trials = [trial(n, values, objective=1.0) for n, values in enumerate(points[:8])]
        trials.append(trial(8, points[8], state="failed"))
        assert suggest(GRID, trials, number=9, sampler=sampler, seed=0) == points[8]

    def test_trials_of_another_space_are_ignored(self, sampler):
        other = trial(0, {"learning_rate": 7.0, "batch_size": 32}, objective=0.0)
        assert GRID.contains(suggest(GRID, [other], number=1, sampler=sampler, seed=0))


class TestAnySpace:
    @pytest.mark.parametrize("sampler", ["tpe", "random"])
    def test_equal_questions_get_equal_answers(self, sampler):
        trials = [trial(n, _point(n), objective=float(n)) for n in range(12)]
        first = suggest(RANGES, trials, number=12, sampler=sampler, seed=5)
        assert first == suggest(RANGES, list(trials), number=12, sampler=sampler, seed=5)
        assert first != suggest(RANGES, trials, number=13, sampler=sampler, seed=5)
        assert first != suggest(RANGES, trials, number=12, sampler=sampler, seed=6)

    @settings(max_examples=25, deadline=None)
    @given(st.integers(0, 50), st.integers(0, 2**32 - 1), st.sampled_from(["tpe", "random"]))
    def test_every_draw_lies_in_the_space_and_has_its_types(self, number, seed, sampler):
        values = suggest(RANGES, [], number=number, sampler=sampler, seed=seed)
        assert RANGES.contains(values)
        assert type(values["batch_size"]) is int
        assert values["weight_decay"] in (0, 0.1, 0.2, 0.3)

    def test_parallel_trials_of_one_round_differ(self):
        drawn = [one.values for one in next_trials(RANGES, [], study="s", count=4, sampler="tpe", seed=0)]
        assert len({tuple(values.values()) for values in drawn}) == 4

    def test_without_dimensions_one_trial_draws_nothing(self):
        (only,) = next_trials(space_of("{epochs: 1}"), [], study="s", count=3, sampler="tpe", seed=0)
        assert only.values == {}

    def test_tpe_comes_nearer_than_random(self):
        space = space_of("{learning_rate: {range: [1e-6, 1], log: true}, weight_decay: {range: [0, 1]}}")

        def loss(values):
            return abs(math.log10(values["learning_rate"]) + 3) + abs(values["weight_decay"] - 0.3)

        def reached(sampler, seed):
            trials: list[Trial] = []
            while len(trials) < 30:
                fresh = next_trials(space, trials, study="s", count=2, sampler=sampler, seed=seed)
                trials += [one.evolve(state="complete", objective=loss(one.values)) for one in fresh]
            return best(trials).objective

        seeds = range(4)
        assert sum(reached("tpe", seed) for seed in seeds) < sum(reached("random", seed) for seed in seeds)

    def test_what_diverged_repels_and_what_failed_does_not(self):
        """Twelve trials in the upper half diverged: TPE must go below; had they failed, it would know nothing."""
        space = space_of("{learning_rate: {range: [0.0001, 1], log: true}}")
        good = [trial(n, {"learning_rate": 0.0002 * (n + 1)}, objective=3.0) for n in range(6)]
        high = [{"learning_rate": 0.05 * (n + 1)} for n in range(12)]
        diverged = [trial(6 + n, values) for n, values in enumerate(high)]
        draws = [suggest(space, good + diverged, number=n, sampler="tpe", seed=0) for n in range(20, 30)]
        assert sum(draw["learning_rate"] < 0.03 for draw in draws) >= 8
        lost = [one.evolve(state="failed") for one in diverged]
        without = [suggest(space, good + lost, number=n, sampler="tpe", seed=0) for n in range(20, 30)]
        assert without == [suggest(space, good, number=n, sampler="tpe", seed=0) for n in range(20, 30)]

    def test_running_trials_repel_the_next_one(self):
        space = space_of("{learning_rate: {range: [0.0001, 1], log: true}}")
        known = [trial(n, {"learning_rate": 10 ** -(4 - n / 3)}, objective=abs(n - 6)) for n in range(12)]
        busy = [trial(12 + n, {"learning_rate": 0.01 + n / 1e4}, "running") for n in range(8)]
        near = [
            sum(
                abs(math.log10(suggest(space, trials, number=n, sampler="tpe", seed=0)["learning_rate"]) + 2) < 0.2
                for n in range(30, 42)
            )
            for trials in (known, known + busy)
        ]
        assert near[1] < near[0]

    def test_pruned_trials_teach_by_their_curves(self):
        space = space_of("{learning_rate: {range: [0.0001, 1], log: true}}")
        trials = [trial(n, {"learning_rate": 0.0002 * (n + 1)}, objective=3.0) for n in range(8)]
        curves = [((10, 9.0),), ((10, 9.5), (20, 9.4))]
        pruned = [trial(8 + n, {"learning_rate": 0.4}, "pruned", curve=curve) for n, curve in enumerate(curves)]
        values = suggest(space, trials + pruned, number=10, sampler="tpe", seed=0)
        assert space.contains(values)
        assert values != suggest(space, trials, number=10, sampler="tpe", seed=0)


class TestBest:
    def test_is_the_lowest_or_highest_complete_one(self):
        trials = [
            trial(0, {}, objective=2.0),
            trial(1, {}, "pruned", objective=0.5),
            trial(2, {}, "running", objective=0.1),
            trial(3, {}, objective=1.0),
            trial(4, {}),
        ]
        assert best(trials).number == 3
        assert best(trials, "maximize").number == 0

    def test_is_the_earlier_of_equals_whatever_the_order(self):
        trials = [trial(n, {}, objective=1.0) for n in (2, 0, 1)]
        assert best(trials).number == best(trials, "maximize").number == 0

    def test_is_none_without_a_complete_trial(self):
        assert best([trial(0, {}), trial(1, {}, "failed", objective=0.0)]) is None


def _point(n: int):
    return {"learning_rate": 10 ** -(1 + n / 4), "weight_decay": (0, 0.1, 0.2, 0.3)[n % 4], "batch_size": 1 + n * 997}
