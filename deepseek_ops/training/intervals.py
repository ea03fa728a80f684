"""How often to checkpoint: from what a checkpoint costs and how often trainings are interrupted.

Too often costs stalls, too rarely costs steps that run again. Young (1974) balances the two to first order,
``T = sqrt(2 C M)`` for a cost ``C`` and a mean time between failures ``M``; Daly (2006, "A higher order estimate of
the optimum checkpoint interval for restart dumps") adds the terms that matter once ``C`` is no longer small beside
``M``. All times are in seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

NODE_MTBF_SECONDS = 24 * 3600.0
"""Mean time between interruptions of one machine where nothing is known of it: spot machines are lost about once a
day; machines of one's own live ten times as long, and then a checkpoint too many costs a fraction of a percent."""


def young(cost: float, mtbf: float) -> float:
    """Return Young's interval, in seconds of training between two checkpoints."""
    return math.sqrt(2.0 * cost * mtbf)


def daly(cost: float, mtbf: float) -> float:
    """Return Daly's higher-order interval, in seconds of training between two checkpoints.

    Where a checkpoint takes longer than two mean times between failures there is no optimum; Daly uses ``mtbf`` then.
    """
    if cost >= 2.0 * mtbf:
        return mtbf
    share = cost / (2.0 * mtbf)
    return young(cost, mtbf) * (1.0 + math.sqrt(share) / 3.0 + share / 9.0) - cost


def lost_share(interval: float, cost: float, mtbf: float) -> float:
    """Return the share of time that checkpoints and repeated steps cost together, to first order: C/T + T/2M."""
    return cost / interval + interval / (2.0 * mtbf)


def mtbf_seconds(interruptions: int, seconds: float, *, nodes: int = 1, expected: float = NODE_MTBF_SECONDS) -> float:
    """Return the mean time between interruptions of a training on ``nodes`` machines.

    What was expected counts as one interruption in that time (the mean of a gamma prior of weight one), so a first
    hour without an interruption does not promise eternity, and ten interruptions outweigh any expectation.
    """
    return (expected / max(nodes, 1) + seconds) / (1 + interruptions)


@dataclass(frozen=True, slots=True)
class Interval:
    """An interval and where it comes from, for the event that reports it."""

    steps: int
    seconds: float
    cost_seconds: float
    mtbf_seconds: float
    step_seconds: float
    lost_share: float
    source: str


def automatic(
    *, cost: float, step_seconds: float, interruptions: int, trained_seconds: float, busy: float = 0.0, nodes: int = 1
) -> Interval:
    """Return the interval that loses least.

    Args:
        cost: Seconds a checkpoint keeps the ranks from training.
        step_seconds: Seconds of a step.
        interruptions: How often this training was interrupted.
        trained_seconds: How long it has trained, over all its lives.
        busy: Seconds until a checkpoint is written and sent in the background: more often makes no sense.
        nodes: Machines it runs on; the loss of any of them interrupts it.
    """
    mtbf = mtbf_seconds(interruptions, trained_seconds, nodes=nodes)
    seconds = max(daly(cost, mtbf), busy, step_seconds)
    steps = max(1, round(seconds / step_seconds))
    history = f"{interruptions} interruptions in {trained_seconds:.0f} s of training"
    source = f"Daly 2006; cost measured; {history} on top of one expected in {NODE_MTBF_SECONDS / nodes:.0f} s"
    return Interval(
        steps=steps,
        seconds=steps * step_seconds,
        cost_seconds=cost,
        mtbf_seconds=mtbf,
        step_seconds=step_seconds,
        lost_share=lost_share(steps * step_seconds, max(cost, 1e-9), mtbf),
        source=source,
    )
