"""What a stage decides."""

from __future__ import annotations

import math

import pytest

from deepseek_ops.core.config import load_pipeline
from deepseek_ops.core.errors import InvalidRecordError
from deepseek_ops.core.records import Verdict
from deepseek_ops.validation import IncomparableItemsError, StagePlan, judge, plan_stages

QUICK, THOROUGH = plan_stages(load_pipeline("name: x", file="f").validation)


def items(value: float = 3.0, n: int = 64) -> dict[str, float]:
    return {f"item-{at}": value + (at % 7) / 100 for at in range(n)}


class TestPlans:
    def test_the_built_in_stages_are_a_quick_check_and_a_comparison(self):
        assert (QUICK.name, QUICK.max_items, QUICK.against) == ("quick-check", 64, "none")
        assert (THOROUGH.name, THOROUGH.max_items, THOROUGH.margin) == ("thorough-eval", None, 0.01)

    def test_a_selection_is_part_of_what_is_compared(self):
        assert QUICK.dataset("ab12") == "ab12/test[:64]"
        assert THOROUGH.dataset("ab12") == "ab12/test"

    def test_a_plan_survives_xcom(self):
        assert StagePlan.load(THOROUGH.dump()) == THOROUGH

    def test_a_margin_without_a_champion_is_no_plan(self):
        with pytest.raises(InvalidRecordError):
            StagePlan.load({"name": "a", "selection": "b", "timeout_seconds": 1.0, "margin": 0.1})


class TestSanity:
    def test_a_first_model_passes_when_it_beats_guessing(self):
        verdict, reason, *_ = judge(QUICK, {"val_loss": 3.0}, items(), None, vocab_size=512)
        assert verdict is Verdict.PASS
        assert "6.2383" in reason

    @pytest.mark.parametrize("loss", [math.log(512), 7.0])
    def test_a_model_that_guesses_fails(self, loss):
        assert judge(QUICK, {"val_loss": loss}, items(loss), None, vocab_size=512).verdict is Verdict.FAIL

    def test_accuracy_has_no_such_bound(self):
        stage = QUICK.evolve(metric="accuracy", direction="maximize")
        assert judge(stage, {"accuracy": 90.0}, items(90.0), None, vocab_size=512).verdict is Verdict.PASS

    @pytest.mark.parametrize("metrics", [{}, {"val_loss": math.nan}, {"val_loss": math.inf}])
    def test_what_is_not_measured_or_not_finite_fails(self, metrics):
        assert judge(QUICK, metrics, items(), None).verdict is Verdict.FAIL

    def test_one_broken_item_fails_and_is_counted(self):
        judgement = judge(QUICK, {"val_loss": 3.0}, items() | {"item-3": math.nan}, None)
        assert judgement.verdict is Verdict.FAIL
        assert "1 of 64 items" in judgement.reason

    def test_few_items_are_inconclusive_and_say_how_many_are_missing(self):
        judgement = judge(QUICK, {"val_loss": 3.0}, items(n=12), None)
        assert judgement.verdict is Verdict.INCONCLUSIVE
        assert "8 more" in judgement.reason

    def test_a_stage_without_comparison_ignores_the_champion(self):
        assert judge(QUICK, {"val_loss": 3.0}, items(), items(1.0)).comparison is None


class TestAgainstTheChampion:
    def test_the_first_model_has_none(self):
        judgement = judge(THOROUGH, {"val_loss": 3.0}, items(), None)
        assert judgement.verdict is Verdict.PASS
        assert "no champion yet" in judgement.reason

    def test_a_better_model_passes_with_delta_and_interval(self):
        judgement = judge(THOROUGH, {"val_loss": 2.9}, items(2.9), items(3.0))
        assert judgement.verdict is Verdict.PASS
        assert judgement.delta == pytest.approx(-0.1)
        low, high = judgement.interval
        assert low <= judgement.delta <= high
        assert "64 paired items" in judgement.reason

    def test_a_worse_model_fails(self):
        judgement = judge(THOROUGH, {"val_loss": 3.1}, items(3.1), items(3.0))
        assert judgement.verdict is Verdict.FAIL
        assert "significantly worse" in judgement.reason

    def test_a_close_call_says_how_many_items_are_missing(self):
        champion = items(3.0)
        candidate = {key: value + (0.2 if n % 2 else -0.19) for n, (key, value) in enumerate(champion.items())}
        judgement = judge(THOROUGH, {"val_loss": 3.0}, candidate, champion)
        assert judgement.verdict is Verdict.INCONCLUSIVE
        assert judgement.comparison.missing > 1000
        assert f"{judgement.comparison.missing} more items" in judgement.reason

    def test_other_items_are_refused(self):
        with pytest.raises(IncomparableItemsError):
            judge(THOROUGH, {"val_loss": 3.0}, items(n=64), items(n=63))
