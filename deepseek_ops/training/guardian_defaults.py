"""What is watched when the pipeline file says nothing: thresholds that healthy noisy runs do not reach.

Each of them was replayed over the curves of real runs, with thousands of steps, before it was let loose on
weights; ``benchmarks/planted_faults.py`` does so again. They look at relative sizes (the median of the last 64 steps,
its robust deviation), because no absolute number fits both a toy and a model of 671 billion parameters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from deepseek_ops.core.conditions.tree import Test, nodes
from deepseek_ops.core.config.alert_actions import StopTrainingAction
from deepseek_ops.core.config.alerts import Alert

_Spec = Mapping[str, JsonValue]
_PAGE: dict[str, JsonValue] = {"type": "page"}
_STOP: dict[str, JsonValue] = {"type": "stop_training"}

POISONED: _Spec = {
    "metric": "poisoned",
    "condition": "value > 0",
    "severity": "critical",
    "actions": [_PAGE, {"type": "rewind", "max_attempts": 3}, _STOP],
}
"""A loss or gradient that is not finite has entered the weights: nothing but an older state can help."""
SKIPPING: _Spec = {
    "metric": "skipped",
    "condition": "value > 0",
    "for": "3 steps",
    "severity": "critical",
    "actions": [
        _PAGE,
        {"type": "skip_batches", "count": 4, "max_attempts": 2},
        {"type": "rewind", "max_attempts": 2},
        _STOP,
    ],
}
"""Steps that DeepSpeed skips again and again train nothing and cost as much as any other. Its skipping kept the
weights clean, so leaving out what comes next is tried before going back."""
NAN_LOSS: _Spec = {
    "metric": "loss_nan_ranks",
    "condition": "value > 0",
    "cooldown": "100 steps",
    "severity": "warning",
    "actions": [_PAGE],
}
"""A NaN on any rank is worth a word: rank 0's own loss would not show it."""
SPIKE: _Spec = {
    "metric": "training_loss",
    "condition": "value > 1.3 * median(64) and robust_zscore(64) > 8",
    "for": "3 steps",
    "cooldown": "20 steps",
    "severity": "critical",
    "actions": [_PAGE, {"type": "rewind", "max_attempts": 2}, {"type": "lower_lr", "factor": 0.5, "max_attempts": 2}],
}
"""Far above its last 64 steps for three in a row. Spikes of one or two steps heal by themselves."""
EXPLODING: _Spec = {
    "metric": "grad_norm",
    "condition": "value > 20 * median(64) and robust_zscore(64) > 12 and not is_inf()",
    "for": "2 steps",
    "cooldown": "20 steps",
    "severity": "critical",
    "actions": [_PAGE, {"type": "rewind", "max_attempts": 1}, {"type": "lower_lr", "factor": 0.5, "max_attempts": 2}],
}
"""Before clipping. Infinite norms are skipped steps, which have a rule of their own."""
SLOW: _Spec = {
    "metric": "tokens_per_second",
    "condition": "value < 0.3 * median(64)",
    "for": "16 steps",
    "cooldown": "200 steps",
    "severity": "warning",
    "actions": [_PAGE],
}
"""A third of the usual throughput, for longer than a noisy neighbour lasts and shorter than the median forgets."""
STALL: _Spec = {
    "metric": "step_seconds",
    "condition": "value > 30 and value > 10 * median(64)",
    "cooldown": "50 steps",
    "severity": "warning",
    "actions": [_PAGE],
}
"""One step that took ten times as long as usual and more than half a minute. Steps that never end are for the hang
detection, which stands outside."""


def default_alerts(
    own: Sequence[Alert], *, recovers: bool = True, experts: int = 0, experts_per_token: int = 0, layers: int = 1
) -> tuple[Alert, ...]:
    """Return the default rules that the pipeline file's rules leave in force.

    A rule of the file on the same metric replaces a default. One that acts on ``is_nan()`` of a loss replaces those
    that rewind or skip because of a NaN: who says what is to be done about it is not contradicted.

    Args:
        own: The rules of the pipeline file.
        recovers: False for trials of a search: a trial that diverges has answered, and is stopped instead of healed.
        experts: Routed experts of a layer; 0 for dense models.
        experts_per_token: How many of them each token visits.
        layers: Layers with routed experts.
    """
    specs = [POISONED, SKIPPING, NAN_LOSS, SPIKE, EXPLODING, SLOW, STALL]
    if experts > experts_per_token > 0:
        specs.append(_collapsed(experts * layers))
        if experts >= 8 * experts_per_token:
            specs.append(_crowded(experts, experts_per_token))
    watched = {rule.metric for rule in own}
    if any(_acts_on_nan(rule) for rule in own):
        watched |= {"poisoned", "skipped"}
    rules = [Alert.model_validate(dict(spec)) for spec in specs]
    return tuple(rule if recovers else _only_stops(rule) for rule in rules if rule.metric not in watched)


def _crowded(experts: int, experts_per_token: int) -> _Spec:
    """Return the rule for an expert that gets a large part of all tokens.

    Its share can be at most ``experts / experts_per_token`` times an even one: then it sees every token. Half of that
    is a collapse in a wide layer, where healthy experts stay below 4. In narrow ones (4 experts, 2 per token) a healthy
    expert does see nearly every token, so only dead ones tell.
    """
    return {
        "metric": "expert_load_max",
        "condition": f"value > {max(4.0, 0.5 * experts / experts_per_token):g}",
        "for": "20 steps",
        "cooldown": "100 steps",
        "severity": "critical",
        "actions": [_PAGE, {"type": "rewind", "max_attempts": 1}],
    }


def _collapsed(experts: int) -> _Spec:
    """Return the rule for routers that have stopped using nearly half of all experts; a few dead ones are normal."""
    return {
        "metric": "experts_dead",
        "condition": f"value >= {max(1.0, 0.45 * experts):g}",
        "for": "20 steps",
        "cooldown": "100 steps",
        "severity": "critical",
        "actions": [_PAGE, {"type": "rewind", "max_attempts": 1}],
    }


def _acts_on_nan(rule: Alert) -> bool:
    asks = any(isinstance(node, Test) and node.function == "is_nan" for node in nodes(rule.parsed.root))
    return bool(asks and rule.ladder and rule.metric in ("training_loss", "loss"))


def _only_stops(rule: Alert) -> Alert:
    """Return the rule as a trial needs it: it stops where it would rewind because of what the weights have become."""
    if not rule.ladder:
        return rule
    heals = rule.metric in ("poisoned", "skipped")
    return rule.model_copy(update={"actions": (*rule.notifications, *([_stop()] if heals else []))})


def _stop() -> StopTrainingAction:
    return StopTrainingAction(type="stop_training")
