"""Paired comparisons: what they promise about false alarms, and what they say."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from deepseek_ops.core.records import Verdict
from deepseek_ops.validation import (
    Comparison,
    IncomparableItemsError,
    compare_paired,
    holm,
    items_needed,
    minimum_detectable_effect,
)
from deepseek_ops.validation.student import cdf, quantile


def items(values) -> dict[str, float]:
    return {f"item-{n}": float(value) for n, value in enumerate(values)}


def simulate(*, n: int, shift: float, margin: float, runs: int, seed: int) -> dict[Verdict, float]:
    """Return the shares of verdicts over runs in which the candidate's true mean is worse by ``shift``."""
    source = random.Random(seed)  # noqa: S311
    counts = dict.fromkeys(Verdict, 0)
    for _ in range(runs):
        champion = [source.gauss(3, 1) for _ in range(n)]
        candidate = [value + source.gauss(shift, 0.2) for value in champion]
        counts[compare_paired(items(candidate), items(champion), margin=margin).verdict] += 1
    return {verdict: count / runs for verdict, count in counts.items()}


class TestPromises:
    def test_an_equal_model_rarely_fails(self):
        shares = simulate(n=60, shift=0.0, margin=0.05, runs=1500, seed=1)
        assert 0.03 < shares[Verdict.FAIL] < 0.07, "5 % by construction"

    def test_a_model_worse_by_the_margin_rarely_passes(self):
        shares = simulate(n=60, shift=0.05, margin=0.05, runs=1500, seed=2)
        assert 0.03 < shares[Verdict.PASS] < 0.07, "5 % by construction"

    def test_the_planned_number_of_items_passes_four_equal_models_of_five(self):
        n = items_needed(0.2, 0.05)
        assert n == pytest.approx((1.6449 + 0.8416) ** 2 * 16, abs=3)
        assert 0.76 < simulate(n=n, shift=0.0, margin=0.05, runs=1000, seed=3)[Verdict.PASS] < 0.85

    def test_a_planted_drop_is_found(self):
        assert simulate(n=100, shift=0.1, margin=0.05, runs=300, seed=4)[Verdict.FAIL] > 0.99

    def test_pairing_finds_what_unpaired_means_hide(self):
        source = random.Random(5)  # noqa: S311
        champion = [source.gauss(3, 1) for _ in range(100)]
        candidate = [value + 0.1 + source.gauss(0, 0.2) for value in champion]
        paired = compare_paired(items(candidate), items(champion), margin=0.01)
        unpaired_error = math.sqrt(2 / 100)
        assert paired.verdict is Verdict.FAIL
        assert paired.delta < 1.645 * unpaired_error, "the same means, compared without pairs, show nothing"

    def test_published_sizes_for_ten_percent_discordant_pairs(self):
        needed = [items_needed(math.sqrt(0.1), margin) for margin in (0.01, 0.02, 0.03)]
        assert needed == pytest.approx([6184, 1546, 688], abs=2)


paired_values = st.lists(st.tuples(st.floats(-50, 50), st.floats(-50, 50)), min_size=20, max_size=60)


class TestProperties:
    @given(paired_values, st.floats(0.01, 10))
    def test_lower_is_better_mirrors_higher_is_better(self, pairs, margin):
        candidate, champion = items(one for one, _ in pairs), items(other for _, other in pairs)
        low = compare_paired(candidate, champion, margin=margin)
        negated = [{key: -value for key, value in side.items()} for side in (candidate, champion)]
        high = compare_paired(*negated, margin=margin, direction="maximize")
        assert high.verdict is low.verdict
        assert high.delta == pytest.approx(-low.delta)
        assert high.p_worse == pytest.approx(low.p_worse)

    @given(paired_values, st.floats(0.01, 10), st.floats(0.01, 10))
    def test_a_wider_margin_never_turns_a_pass_into_something_else(self, pairs, margin, more):
        candidate, champion = items(one for one, _ in pairs), items(other for _, other in pairs)
        if compare_paired(candidate, champion, margin=margin).verdict is Verdict.PASS:
            assert compare_paired(candidate, champion, margin=margin + more).verdict is Verdict.PASS

    @given(paired_values, st.floats(0.01, 10), st.floats(0.1, 10))
    def test_a_worse_candidate_never_does_better(self, pairs, margin, harm):
        order = [Verdict.FAIL, Verdict.INCONCLUSIVE, Verdict.PASS]
        candidate, champion = items(one for one, _ in pairs), items(other for _, other in pairs)
        before = compare_paired(candidate, champion, margin=margin).verdict
        after = compare_paired({k: v + harm for k, v in candidate.items()}, champion, margin=margin).verdict
        assert order.index(after) <= order.index(before)

    @given(paired_values)
    def test_the_order_of_items_says_nothing(self, pairs):
        candidate, champion = items(one for one, _ in pairs), items(other for _, other in pairs)
        backwards = dict(reversed(candidate.items()))
        assert compare_paired(backwards, champion, margin=1) == compare_paired(candidate, champion, margin=1)

    @given(paired_values, st.floats(0.01, 10))
    def test_only_an_open_question_names_missing_items(self, pairs, margin):
        seen = compare_paired(items(one for one, _ in pairs), items(other for _, other in pairs), margin=margin)
        assert (seen.missing > 0) is (seen.verdict is Verdict.INCONCLUSIVE)
        assert seen.interval[0] <= seen.delta <= seen.interval[1]

    @given(st.floats(0.01, 10), st.floats(0.01, 10), st.floats(1.01, 3))
    def test_smaller_effects_and_noisier_items_need_more(self, sd, effect, factor):
        needed = items_needed(sd, effect)
        assert items_needed(sd, effect / factor) >= needed
        assert items_needed(sd * factor, effect) >= needed

    @given(st.floats(0.01, 10), st.integers(20, 5000))
    def test_the_detectable_effect_is_what_so_many_items_detect(self, sd, n):
        effect = minimum_detectable_effect(sd, n)
        assert items_needed(sd, effect) <= n + 2
        assume(n > 25)
        assert items_needed(sd, effect) >= n - 3


class TestAnswers:
    def test_the_same_results_are_not_worse(self):
        same = items(range(30))
        seen = compare_paired(same, same, margin=0.01)
        assert (seen.verdict, seen.delta, seen.interval, seen.p_worse) == (Verdict.PASS, 0.0, (0.0, 0.0), 1.0)

    def test_worse_within_the_margin_passes_even_when_it_is_significant(self):
        champion = items(range(40))
        candidate = {key: value + 0.5 + 0.001 * (n % 2) for n, (key, value) in enumerate(champion.items())}
        seen = compare_paired(candidate, champion, margin=1.0)
        assert seen.verdict is Verdict.PASS
        assert seen.p_worse < 1e-9

    def test_a_constant_loss_fails(self):
        champion = items(range(40))
        assert compare_paired({k: v + 2 for k, v in champion.items()}, champion, margin=1).verdict is Verdict.FAIL

    def test_few_items_settle_nothing(self):
        few = items(range(5))
        seen = compare_paired(few, few, margin=0.01)
        assert (seen.verdict, seen.missing) == (Verdict.INCONCLUSIVE, 15)

    def test_it_survives_being_stored(self):
        seen = compare_paired(items(range(30)), items(range(30)), margin=0.5)
        assert Comparison.load(seen.dump()) == seen

    def test_other_items_are_refused(self):
        with pytest.raises(IncomparableItemsError, match="1 items lack the candidate and 0 the champion"):
            compare_paired(items(range(29)), items(range(30)), margin=1)
        with pytest.raises(IncomparableItemsError, match="no items"):
            compare_paired({}, {}, margin=1)

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_values_that_are_no_numbers_are_refused(self, value):
        with pytest.raises(IncomparableItemsError, match="the champion has"):
            compare_paired(items(range(30)), items(range(30)) | {"item-3": value}, margin=1)


class TestHolm:
    def test_multiplies_by_how_many_are_left(self):
        assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})

    def test_one_metric_is_left_as_it_is(self):
        assert holm({"a": 0.04}) == {"a": 0.04}
        assert holm({}) == {}

    @given(st.dictionaries(st.text(min_size=1, max_size=3), st.floats(0, 1), max_size=8))
    def test_never_lowers_never_exceeds_one_keeps_the_order(self, p_values):
        adjusted = holm(p_values)
        assert list(adjusted) == list(p_values)
        assert all(p_values[name] <= adjusted[name] <= 1 for name in p_values)
        ranked = sorted(p_values, key=p_values.__getitem__)
        assert all(adjusted[low] <= adjusted[high] for low, high in itertools.pairwise(ranked))

    def test_thirty_equal_metrics_keep_one_alarm_in_twenty(self):
        source = random.Random(6)  # noqa: S311
        runs = [{str(n): source.random() for n in range(30)} for _ in range(1000)]
        naive = sum(min(run.values()) < 0.05 for run in runs) / 1000
        held = sum(min(holm(run).values()) < 0.05 for run in runs) / 1000
        assert naive > 0.7
        assert held < 0.07


class TestStudent:
    @pytest.mark.parametrize(
        ("probability", "degrees", "value"),
        [(0.95, 1, 6.313752), (0.975, 10, 2.228139), (0.95, 19, 1.729133), (0.975, 2, 4.302653), (0.9, 1000, 1.282399)],
    )
    def test_quantiles_are_those_of_the_tables(self, probability, degrees, value):
        assert quantile(probability, degrees) == pytest.approx(value, abs=1e-6)

    @given(st.floats(-30, 30), st.integers(1, 5000))
    def test_the_distribution_is_symmetric(self, value, degrees):
        assert cdf(value, degrees) + cdf(-value, degrees) == pytest.approx(1, abs=1e-12)

    @given(st.floats(0.51, 0.9999), st.integers(1, 5000))
    def test_a_quantile_is_the_inverse(self, probability, degrees):
        assert cdf(quantile(probability, degrees), degrees) == pytest.approx(probability, abs=1e-10)
