"""Stages, paired comparisons and verdicts.

Decision: a gate asks "is it not worse than the champion by more than the margin?" (non-inferiority) on the same items,
paired, and may answer ``inconclusive`` with the number of items that are missing. A bare threshold on a mean stops one
release in four whose model is as good as the champion (200 items, 10 % of them differing), so there is none.
"""

from deepseek_ops.validation.comparison import (
    Comparison,
    IncomparableItemsError,
    compare_paired,
    holm,
    items_needed,
    minimum_detectable_effect,
)
from deepseek_ops.validation.gates import Judgement, judge, sanity
from deepseek_ops.validation.stages import StagePlan, plan_stages

__all__ = [
    "Comparison",
    "IncomparableItemsError",
    "Judgement",
    "StagePlan",
    "compare_paired",
    "holm",
    "items_needed",
    "judge",
    "minimum_detectable_effect",
    "plan_stages",
    "sanity",
]
