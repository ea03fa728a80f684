"""The verdict of one stage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from deepseek_ops.core.records import Verdict
from deepseek_ops.validation.comparison import MIN_ITEMS, Comparison, compare_paired, items_needed
from deepseek_ops.validation.stages import StagePlan

_LOSSES = ("val_loss", "training_loss", "test_loss", "loss")


class Judgement(NamedTuple):
    """What a stage says, in the terms of an Evaluation."""

    verdict: Verdict
    reason: str
    """One sentence a release manager can read."""
    delta: float | None = None
    interval: tuple[float, float] | None = None
    comparison: Comparison | None = None


def judge(
    stage: StagePlan,
    metrics: Mapping[str, float],
    items: Mapping[str, float],
    champion_items: Mapping[str, float] | None,
    *,
    vocab_size: int | None = None,
) -> Judgement:
    """Return the verdict of a stage, from the metrics of the model and its value for each item.

    The sanity gate comes first. Then, where the stage compares and there is a champion, the paired comparison; without
    a champion (the first model) sanity is all that can be asked. Raises IncomparableItemsError when the two models
    were not evaluated on the same items.
    """
    sane = sanity(stage, metrics, items, vocab_size=vocab_size)
    if sane.verdict is not Verdict.PASS or stage.margin is None:
        return sane
    if champion_items is None:
        return Judgement(Verdict.PASS, f"{sane.reason} There is no champion yet to compare with.")
    seen = compare_paired(
        items, champion_items, margin=stage.margin, direction=stage.direction, confidence=stage.confidence
    )
    return Judgement(seen.verdict, _sentence(stage, seen), seen.delta, seen.interval, seen)


def sanity(
    stage: StagePlan, metrics: Mapping[str, float], items: Mapping[str, float], *, vocab_size: int | None = None
) -> Judgement:
    """Return whether the results are those of a model at all.

    The metric exists and is finite, and so is every item; a loss is below ln(vocab_size), what guessing uniformly
    costs; there are enough items for a mean to say something.
    """
    value = metrics.get(stage.metric)
    if value is None:
        known = ", ".join(sorted(metrics)) or "none"
        return Judgement(Verdict.FAIL, f"{stage.metric} was not measured (measured: {known}).")
    broken = [item for item, score in items.items() if not math.isfinite(score)]
    if not math.isfinite(value) or broken:
        where = f"{len(broken)} of {len(items)} items" if broken else "the mean"
        return Judgement(Verdict.FAIL, f"{stage.metric} is not finite for {where}.")
    bound = math.log(vocab_size) if vocab_size and stage.metric in _LOSSES else math.inf
    if value >= bound:
        text = f"{stage.metric} {value:.4f} is not below {bound:.4f}, what guessing over {vocab_size} tokens costs."
        return Judgement(Verdict.FAIL, text)
    if len(items) < MIN_ITEMS:
        text = f"{len(items)} items are too few for a verdict; {MIN_ITEMS - len(items)} more are needed."
        return Judgement(Verdict.INCONCLUSIVE, text)
    limit = f", below {bound:.4f}, what guessing costs" if bound < math.inf else ""
    return Judgement(Verdict.PASS, f"{stage.metric} {value:.4f} over {len(items)} items{limit}.")


def _sentence(stage: StagePlan, seen: Comparison) -> str:
    low, high = seen.interval
    facts = (
        f"{stage.metric} differs from the champion's by {seen.delta:+.4f} "
        f"({100 * (2 * seen.confidence - 1):.0f} % interval {low:+.4f} to {high:+.4f}, {seen.n} paired items)"
    )
    if seen.verdict is Verdict.PASS:
        return f"{facts}: not worse by {seen.margin:g} or more."
    if seen.verdict is Verdict.FAIL:
        return f"{facts}: significantly worse, and not within the margin of {seen.margin:g}."
    equal = items_needed(seen.sd, seen.margin, confidence=seen.confidence)
    return (
        f"{facts}: not enough evidence for a margin of {seen.margin:g}; about {seen.missing} more items "
        f"would settle it ({equal} in total for an equal model)."
    )
