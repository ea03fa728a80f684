"""Two models on the same items: mean paired difference, its interval, and what it means for a margin.

The test is the non-inferiority test for paired means (as in the CONSORT extension for non-inferiority trials, Piaggio
et al. 2012; sizes after Chow, Shao & Wang, *Sample Size Calculations in Clinical Research*, 3.1). With d_i the
degradation of item i (candidate minus champion where less is better, the other way round where more is better):

    bound  = mean(d) +- t(confidence, n - 1) * sd(d) / sqrt(n)
    pass     upper bound < margin      (not worse by as much as the margin)
    fail     lower bound > 0           (significantly worse than the champion, and not shown to be within the margin)
    otherwise inconclusive, with the number of items that are missing

Each bound is one-sided at ``confidence``: a model that equals the champion fails at most in 1 - confidence of all
comparisons, one that is worse by the margin passes at most as often. The interval that is reported is therefore the
two-sided one at 2 x confidence - 1.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import Field

from deepseek_ops.core.config.base import Direction
from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.records import Record, Verdict
from deepseek_ops.validation import student

MIN_ITEMS = 20
"""Below this a mean of skewed items is too far from normal for any verdict but inconclusive."""
POWER = 0.8
"""Chance of passing an equal model that ``items_needed`` plans for."""


@dataclass(eq=False)
class IncomparableItemsError(PermanentError):
    """Two models were not evaluated on the same items, or the champion's results are not numbers."""

    problem: str

    def __str__(self) -> str:
        return f"results cannot be compared: {self.problem}; evaluate both models on the same selection."


class Comparison(Record):
    """How a candidate compares with the champion on the same items."""

    n: int = Field(ge=0, description="Items.")
    delta: float = Field(description="Mean of candidate - champion, metric units.")
    sd: float = Field(ge=0, description="Standard deviation of the paired differences.")
    interval: tuple[float, float] = Field(description="Of delta, two-sided at 2 x confidence - 1.")
    margin: float = Field(gt=0)
    direction: Direction
    confidence: float
    p_worse: float = Field(ge=0, le=1, description="One-sided p value of 'not worse than the champion'.")
    verdict: Verdict
    missing: int = Field(ge=0, description="Items that are missing for a verdict, at 80 % power; 0 when settled.")

    @property
    def degradation(self) -> float:
        """How much worse the candidate is on average; negative when it is better."""
        return self.delta if self.direction == "minimize" else -self.delta


def compare_paired(
    candidate: Mapping[str, float],
    champion: Mapping[str, float],
    *,
    margin: float,
    direction: Direction = "minimize",
    confidence: float = 0.95,
) -> Comparison:
    """Return the paired comparison of two models; both map item id -> value of the metric.

    Raises IncomparableItemsError when the item ids differ, there are none, or a value is not finite.
    """
    _check_pairs(candidate, champion)
    differences = [candidate[item] - champion[item] for item in sorted(candidate)]
    n = len(differences)
    delta = statistics.fmean(differences)
    sd = math.sqrt(math.fsum((one - delta) ** 2 for one in differences) / (n - 1)) if n > 1 else 0.0
    error = sd / math.sqrt(n)
    reach = student.quantile(confidence, n - 1) * error if n > 1 else 0.0
    worse = delta if direction == "minimize" else -delta
    verdict = _verdict(n, worse - reach, worse + reach, margin)
    return Comparison(
        n=n,
        delta=delta,
        sd=sd,
        interval=(delta - reach, delta + reach),
        margin=margin,
        direction=direction,
        confidence=confidence,
        p_worse=_p_worse(worse, error, n),
        verdict=verdict,
        missing=_missing(n, worse, sd, margin, confidence) if verdict is Verdict.INCONCLUSIVE else 0,
    )


def items_needed(sd: float, effect: float, *, confidence: float = 0.95, power: float = POWER) -> int:
    """Return how many paired items tell ``effect`` from zero (or an equal model from the margin) with ``power``.

    n = ((z(confidence) + z(power)) * sd / effect)^2, and a little more for the t distribution; at least MIN_ITEMS.
    """
    if not effect > 0:
        raise ValueError(f"effect={effect} must be above 0")
    reach = student.normal_quantile(confidence) + student.normal_quantile(power)
    exact = (reach * sd / effect) ** 2 + student.normal_quantile(confidence) ** 2 / 2
    return max(MIN_ITEMS, math.ceil(exact)) if sd > 0 else MIN_ITEMS


def minimum_detectable_effect(sd: float, n: int, *, confidence: float = 0.95, power: float = POWER) -> float:
    """Return the smallest difference that ``n`` paired items show with ``power``, metric units; inf below two items."""
    if n < 2:
        return math.inf
    return (student.quantile(confidence, n - 1) + student.normal_quantile(power)) * sd / math.sqrt(n)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return p values adjusted for looking at several metrics (Holm 1979), in the order given.

    Comparing each with alpha keeps the chance of any false alarm at alpha, whatever the dependence between them.
    """
    ordered = sorted(p_values.items(), key=lambda pair: pair[1])
    adjusted: dict[str, float] = {}
    highest = 0.0
    for rank, (name, p) in enumerate(ordered):
        highest = max(highest, min(1.0, (len(ordered) - rank) * p))
        adjusted[name] = highest
    return {name: adjusted[name] for name in p_values}


def _check_pairs(candidate: Mapping[str, float], champion: Mapping[str, float]) -> None:
    if not candidate and not champion:
        raise IncomparableItemsError("there are no items")
    alone = sorted(set(candidate) ^ set(champion))
    if alone:
        missing = len(set(champion) - set(candidate)), len(set(candidate) - set(champion))
        problem = f"{missing[0]} items lack the candidate and {missing[1]} the champion, such as {alone[0]!r}"
        raise IncomparableItemsError(problem)
    for who, values in (("candidate", candidate), ("champion", champion)):
        bad = next((item for item, value in values.items() if not math.isfinite(value)), None)
        if bad is not None:
            raise IncomparableItemsError(f"the {who} has {values[bad]} for item {bad!r}")


def _verdict(n: int, lower: float, upper: float, margin: float) -> Verdict:
    if n < MIN_ITEMS:
        return Verdict.INCONCLUSIVE
    if upper < margin:
        return Verdict.PASS
    return Verdict.FAIL if lower > 0 else Verdict.INCONCLUSIVE


def _p_worse(worse: float, error: float, n: int) -> float:
    if n < 2:
        return 1.0
    if error == 0:
        return 0.0 if worse > 0 else 1.0
    return 1 - student.cdf(worse / error, n - 1)


def _missing(n: int, worse: float, sd: float, margin: float, confidence: float) -> int:
    """Return how many more items would settle it if the difference seen is the true one.

    What has to be told apart is the difference from the margin where it lies below, else the difference from zero.
    """
    gap = margin - max(worse, 0.0)
    effect = max(gap, worse)
    return max(items_needed(sd, effect, confidence=confidence) - n, 1)
