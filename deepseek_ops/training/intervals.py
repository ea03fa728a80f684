"""How often to checkpoint: from what a checkpoint costs and how often trainings are interrupted.

Too often costs stalls, too rarely costs steps that run again. Young (1974) balances the two to first order,
``T = sqrt(2 C M)`` for a cost ``C`` and a mean time between failures ``M``; Daly (2006, "A higher order estimate of
the optimum checkpoint interval for restart dumps") adds the terms that matter once ``C`` is no longer small beside
``M``. All times are in seconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

NODE_MTBF_SECONDS = 24 * 3600.0
"""Mean time between interruptions of one machine where nothing is known of it: spot machines are lost about once a
day; machines of one's own live ten times as long, and then a checkpoint too many costs a fraction of a percent."""


HISTORY_INTERRUPTIONS = 20
"""Interruptions of other trainings that count at most: what happens to this one must be able to outweigh them."""
HISTORY_SECONDS = 90 * 24 * 3600.0
"""Machine-seconds of other trainings that count at most, for the same reason."""
PAYLOAD_KEY = "interruptions"
"""Key of a train job's payload: the history of the machines that it goes to. It decides no weights."""


@dataclass(frozen=True, slots=True)
class History:
    """How often trainings lost machines of a kind, and how long those ran for them."""

    interruptions: int = 0
    machine_seconds: float = 0.0

    @classmethod
    def of(cls, attempts: Iterable[History]) -> History:
        """Return the sum of the attempts, bounded at an unchanged rate in what it can outweigh."""
        given = list(attempts)
        count, seconds = sum(one.interruptions for one in given), sum(one.machine_seconds for one in given)
        if count > HISTORY_INTERRUPTIONS:
            count, seconds = HISTORY_INTERRUPTIONS, seconds * HISTORY_INTERRUPTIONS / count
        return cls(count, min(seconds, HISTORY_SECONDS))

    def dump(self) -> dict[str, JsonValue]:
        """Return it as JSON."""
        return {"interruptions": self.interruptions, "machine_seconds": self.machine_seconds}

    @classmethod
    def load(cls, value: object) -> History:
        """Return what ``dump`` wrote; no history for anything else, because an interval is no reason to fail."""
        if not isinstance(value, Mapping):
            return cls()
        count, seconds = value.get("interruptions"), value.get("machine_seconds")
        if not isinstance(count, int) or not isinstance(seconds, int | float) or count < 0 or seconds < 0:
            return cls()
        return cls.of([cls(count, float(seconds))])


NO_HISTORY = History()


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


def mtbf_seconds(
    interruptions: int,
    seconds: float,
    *,
    nodes: int = 1,
    expected: float = NODE_MTBF_SECONDS,
    history: History = NO_HISTORY,
) -> float:
    """Return the mean time between interruptions of a training on ``nodes`` machines.

    What was expected counts as one interruption in that time (the mean of a gamma prior of weight one), so a first
    hour without an interruption does not promise eternity, and ten interruptions outweigh any expectation. What other
    trainings met on such machines counts like this training's own time: per machine, and all together.
    """
    known = (expected + history.machine_seconds) / max(nodes, 1)
    return (known + seconds) / (1 + history.interruptions + interruptions)


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
    *,
    cost: float,
    step_seconds: float,
    interruptions: int,
    trained_seconds: float,
    busy: float = 0.0,
    nodes: int = 1,
    history: History = NO_HISTORY,
) -> Interval:
    """Return the interval that loses least.

    Args:
        cost: Seconds a checkpoint keeps the ranks from training.
        step_seconds: Seconds of a step.
        interruptions: How often this training was interrupted.
        trained_seconds: How long it has trained, over all its lives.
        busy: Seconds until a checkpoint is written and sent in the background: more often makes no sense.
        nodes: Machines it runs on; the loss of any of them interrupts it.
        history: What other trainings met on such machines.
    """
    mtbf = mtbf_seconds(interruptions, trained_seconds, nodes=nodes, history=history)
    seconds = max(daly(cost, mtbf), busy, step_seconds)
    steps = max(1, round(seconds / step_seconds))
    own = f"{interruptions} interruptions in {trained_seconds:.0f} s of training"
    others = f", {history.interruptions} in {history.machine_seconds / 3600:.0f} machine-hours of others"
    seen = own + (others if history.machine_seconds else "")
    source = f"Daly 2006; cost measured; {seen} on top of one expected in {NODE_MTBF_SECONDS / nodes:.0f} s"
    return Interval(
        steps=steps,
        seconds=steps * step_seconds,
        cost_seconds=cost,
        mtbf_seconds=mtbf,
        step_seconds=step_seconds,
        lost_share=lost_share(steps * step_seconds, max(cost, 1e-9), mtbf),
        source=source,
    )
