"""Alert rules over the metrics of a training: what they decide follows from the metrics and a small state.

``judge`` is pure: memory and the newest row of metrics in, memory and decisions out. The memory is saved with every
checkpoint, so a resumed run comes to the same decisions at the same steps; attempts are in the ``Ledger``, which
nothing undoes. What ``for``, ``cooldown`` and a ladder mean stands in ``core.config.alerts``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import JsonValue

from deepseek_ops.core.config.alert_actions import Act, Notification, RewindAction, StopTrainingAction
from deepseek_ops.core.config.alerts import Alert
from deepseek_ops.training.guardian_ledger import REWIND, STOP, Ledger

ELAPSED = "elapsed_seconds"
"""Metric that rules with a duration measure by: seconds of training since its start, pauses left out."""
MAX_EVIDENCE = 10
MAX_WIDENING = 64
LAGS: Mapping[str, int] = {"experts_dead": 16}
"""Metrics that look back themselves, and how many steps: what they show began so much earlier."""

Row = Mapping[str, float]
Rung = tuple[str, int]
"""A rule's title and the place of an action in its ladder."""


@dataclass(frozen=True, slots=True)
class Watch:
    """What one rule remembers. Steps are counts of finished steps; 0 stands for never."""

    measured: int = 0
    """Step at which the metric was measured last."""
    first: int = 0
    """First step that can be the cause of the stretch in which the condition holds now; 0 while it does not hold."""
    held: int = 0
    """Points of the stretch, counted anew after each firing."""
    began: float = 0.0
    """Elapsed seconds at the first of them."""
    told: bool = False
    """Whether the rule has fired in this stretch."""
    fired: int = 0
    fired_at: float = 0.0

    def dump(self) -> list[JsonValue]:
        """Return the watch as JSON; floats keep every bit."""
        return [
            self.measured, self.first, self.held, repr(self.began), self.told, self.fired, repr(self.fired_at)
        ]  # fmt: skip

    @classmethod
    def load(cls, body: JsonValue) -> Watch:
        """Return what ``dump`` wrote."""
        measured, first, held, began, told, fired, fired_at = body if isinstance(body, list) else [0] * 7
        return cls(
            int(str(measured)),
            int(str(first)),
            int(str(held)),
            float(str(began)),
            bool(told),
            int(str(fired)),
            float(str(fired_at)),
        )


@dataclass(frozen=True, slots=True)
class Memory:
    """What the rules look back on: the newest points of each watched metric, and a watch for each rule."""

    points: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    watches: Mapping[str, Watch] = field(default_factory=dict)

    def dump(self) -> dict[str, JsonValue]:
        """Return the memory as JSON; floats keep every bit."""
        return {
            "points": {metric: [repr(value) for value in values] for metric, values in self.points.items()},
            "watches": {rule: watch.dump() for rule, watch in self.watches.items()},
        }

    @classmethod
    def load(cls, body: Mapping[str, JsonValue]) -> Memory:
        """Return what ``dump`` wrote; an empty memory from an empty object."""
        points, watches = body.get("points"), body.get("watches")
        return cls(
            {
                name: tuple(float(str(value)) for value in values)
                for name, values in (points if isinstance(points, dict) else {}).items()
                if isinstance(values, list)
            },
            {name: Watch.load(item) for name, item in (watches if isinstance(watches, dict) else {}).items()},
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """One rule that fired at one step, and the rung of its ladder that is taken."""

    step: int
    rule: str
    metric: str
    severity: str
    evidence: tuple[float, ...]
    """The newest values of the metric, oldest first."""
    notify: tuple[Notification, ...] = ()
    act: Act | None = None
    rung: int = 0
    attempt: int = 0
    """Which attempt of ``act`` this is, from 1; 0 where nothing is left to take."""
    first: int = 0
    """First step that can be the cause; what a rewind goes back behind."""
    repeated: bool = False
    """Whether a resumed run repeats what it did before it was killed."""

    @property
    def action(self) -> str:
        """``stop`` for the end of the training, the type of another action, ``record`` for none."""
        if self.act is None:
            return "record"
        return "stop" if self.act.type == STOP else self.act.type

    @property
    def reason(self) -> str:
        """One sentence for people."""
        values = ", ".join(f"{value:g}" for value in self.evidence)
        return f"{self.rule} (last values: {values})"

    def dump(self) -> dict[str, JsonValue]:
        """Return the fields of the ``alert`` event."""
        return {
            "step": self.step,
            "rule": self.rule,
            "metric": self.metric,
            "severity": self.severity,
            "action": self.action,
            "action_attempt": self.attempt,  # not ``attempt``: that is the job's in every event
            "max_attempts": 0 if self.act is None else self.act.max_attempts,
            "first_step": self.first,
            "evidence": [repr(value) for value in self.evidence],
            "notify": [action.model_dump(mode="json") for action in self.notify],
            "repeated": self.repeated,
            "reason": self.reason,
        }


class Guardian:
    """The rules of one run: ``own`` of the pipeline file, then those of ``defaults`` that they leave in force."""

    def __init__(self, own: Sequence[Alert], defaults: Sequence[Alert] = ()) -> None:
        self.rules = tuple(_titled([*own, *defaults]))
        """Title and rule; equal titles are told apart by a number."""
        self._windows: dict[str, int] = {}
        for _, rule in self.rules:
            needed = max(rule.parsed.window, MAX_EVIDENCE)
            self._windows[rule.metric] = max(needed, self._windows.get(rule.metric, 0))

    def judge(self, memory: Memory, row: Row, ledger: Ledger) -> tuple[Memory, list[Decision]]:
        """Return the memory after ``row`` (the metrics of one step, with ``step``) and the rules that fire at it."""
        points = {
            metric: (*memory.points.get(metric, ()), row[metric])[-size:]
            if metric in row
            else memory.points.get(metric, ())
            for metric, size in self._windows.items()
        }
        watches: dict[str, Watch] = {}
        decisions = []
        for title, rule in self.rules:
            before = memory.watches.get(title, Watch())
            watch = _watched(rule, before, points[rule.metric], row)
            if rule.metric in row and _ripe(title, rule, watch, row, ledger):
                decisions.append(self._decision(title, rule, watch, points[rule.metric], ledger))
                now = _elapsed(row)
                watch = replace(watch, held=0, began=now, told=True, fired=watch.measured, fired_at=now)
            watches[title] = watch
        return Memory(points, watches), decisions

    def without(self, barred: Collection[Rung], decision: Decision, ledger: Ledger) -> Decision:
        """Return the decision with the next rung, for when its own cannot be done; ``barred`` names what cannot."""
        rule = next(rule for title, rule in self.rules if title == decision.rule)
        rung = _choice(decision.rule, rule, ledger, barred)
        if rung is None:
            return replace(decision, act=None, rung=0, attempt=0)
        attempt = ledger.used(decision.rule, rung) + 1
        return replace(decision, act=rule.ladder[rung], rung=rung, attempt=attempt)

    def is_clean(self, memory: Memory, row: Row, ledger: Ledger) -> bool:
        """Return whether nothing speaks against the state after this step, as far as can be known now.

        A loss that is not finite, a skipped step and a condition that a rewind waits for speak against it, however
        short they lasted; other rules say something about the run, not about its weights. Once such a rule has fired
        and the run went on all the same, it is held against the states no more: a rewind goes back behind the whole
        stretch anyway, and a rule that is wrong must not leave a run without a healthy checkpoint.
        """
        if row.get("loss_nan_ranks") or row.get("skipped") or row.get("poisoned"):
            return False
        return not any(
            watch.first
            and not watch.told
            and any(
                isinstance(act, RewindAction) and _left(title, rule, ledger, rung)
                for rung, act in enumerate(rule.ladder)
            )
            for title, rule in self.rules
            if (watch := memory.watches.get(title, Watch()))
        )

    def _decision(self, title: str, rule: Alert, watch: Watch, points: Sequence[float], ledger: Ledger) -> Decision:
        step = watch.measured
        evidence = tuple(points[-max(3, rule.hold.steps or 0) :][-MAX_EVIDENCE:])
        bare = Decision(step, title, rule.metric, rule.severity, evidence, rule.notifications, first=watch.first)
        past = ledger.taken(title, step)
        if past is not None and past.rung < len(rule.ladder) and rule.ladder[past.rung].type == past.action:
            return replace(bare, act=rule.ladder[past.rung], rung=past.rung, attempt=past.attempt, repeated=True)
        return self.without((), bare, ledger)


def widened(decision: Decision) -> int:
    """Return the first step whose batch a rewind leaves out: each further attempt of a rule begins further back.

    The rule names the first step at which its condition held, so the first attempt leaves out exactly the batches at
    which it held: those before it trained cleanly, and leaving them out would lose data for nothing. Where that does
    not help, the cause lies before its effect (a gradient that broke the weights at the end of a step whose loss was
    good), so attempt n begins 2^(n-1) - 1 steps earlier.
    """
    return max(1, decision.first - min(MAX_WIDENING, (1 << max(0, decision.attempt - 1)) - 1))


def _titled(rules: Sequence[Alert]) -> list[tuple[str, Alert]]:
    titles: dict[str, int] = {}
    named = []
    for rule in rules:
        titles[rule.title] = number = titles.get(rule.title, 0) + 1
        named.append((rule.title if number == 1 else f"{rule.title} (#{number})", rule))
    return named


def _elapsed(row: Row) -> float:
    return row.get(ELAPSED, 0.0)


def _watched(rule: Alert, watch: Watch, points: Sequence[float], row: Row) -> Watch:
    """Return the watch after the newest point, before it is known whether the rule fires."""
    if rule.metric not in row:
        return watch  # not measured in this step: nothing new to say
    step = int(row["step"])
    if not rule.holds(points):
        return replace(watch, measured=step, first=0, held=0, told=False)
    if not watch.first:
        # measured every hundred steps, the cause may be any of the hundred
        first = max(1, watch.measured + 1 - LAGS.get(rule.metric, 0))
        return replace(watch, measured=step, first=first, held=1, began=_elapsed(row))
    return replace(watch, measured=step, held=watch.held + 1)


def _ripe(title: str, rule: Alert, watch: Watch, row: Row, ledger: Ledger) -> bool:
    """Return whether the rule fires at the newest point."""
    if not watch.first:
        return False
    if rule.hold.steps:
        lasted = watch.held >= rule.hold.steps
    else:
        lasted = _elapsed(row) - watch.began >= rule.hold.time.total_seconds()
    if not lasted or (watch.told and rule.cooldown is None and _choice(title, rule, ledger) is None):
        return False
    if rule.cooldown is None or not watch.fired:
        return True
    if rule.cooldown.steps:
        return watch.measured - watch.fired >= rule.cooldown.steps
    return _elapsed(row) - watch.fired_at >= rule.cooldown.time.total_seconds()


def _choice(title: str, rule: Alert, ledger: Ledger, barred: Collection[Rung] = ()) -> int | None:
    """Return the rung of the ladder that is taken next; None when it is used up, or there is none."""
    return next(
        (rung for rung in range(len(rule.ladder)) if (title, rung) not in barred and _left(title, rule, ledger, rung)),
        None,
    )


def _left(title: str, rule: Alert, ledger: Ledger, rung: int) -> bool:
    act = rule.ladder[rung]
    if isinstance(act, StopTrainingAction):
        return True
    if rule.max_attempts is not None and ledger.used(title) >= rule.max_attempts:
        return False
    return ledger.used(title, rung) < act.max_attempts


__all__ = ["ELAPSED", "REWIND", "STOP", "Decision", "Guardian", "Memory", "Row", "Rung", "Watch", "widened"]
