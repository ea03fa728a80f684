"""What the guardian writes down of what was done: an entry of the ledger and an event for each action.

The ``guardian`` event has the action, the step, whether it was done, the batch positions and samples left out, and
what it was done for: the rule with its evidence and attempt, or the person who asked. Who is told of a rule that fired
stands in the ``alert`` event before it, as addresses and connection ids, never with a secret.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import JsonValue

from deepseek_ops.core.config.alert_actions import LowerLearningRateAction, SkipBatchesAction
from deepseek_ops.core.jobs import JobRequest
from deepseek_ops.training.guardian import Decision
from deepseek_ops.training.guardian_ledger import REWIND, STOP, Entry

if TYPE_CHECKING:
    from deepseek_ops.jobs.training_ledger import LedgerFile
    from deepseek_ops.jobs.training_streams import Streams

Ranges = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Done:
    """What all ranks did after a step."""

    step: int
    lr_factor: float
    """After it."""
    went_to: int | None = None
    bad: Ranges = ()
    """Positions that a rewind leaves out."""
    ahead: Ranges = ()
    """Positions that are skipped."""


@dataclass
class Notes:
    """Writes for rank 0; on other ranks the ledger is empty and the streams are silent."""

    ledger: LedgerFile
    streams: Streams
    samples: int
    """Samples of one batch."""

    def fired(self, decisions: Sequence[Decision]) -> None:
        """Report the rules that fired, with who is to be told."""
        for decision in decisions:
            self.streams.event("alert", **decision.dump())

    def refused(self, step: int, why: str, decisions: Sequence[Decision], requests: Sequence[JobRequest]) -> None:
        """Note rewinds that could not be done: a person's is answered, a rule's ladder goes on."""
        for decision in decisions:
            self._report(step, REWIND, _facts(decision), why_not=why)
        for request in requests:
            self._report(step, REWIND, _asked(request), why_not=why)
        self._add([Entry(0, step, "", "refused", request=request.number) for request in requests])

    def done(self, done: Done, decisions: Sequence[Decision], requests: Sequence[JobRequest]) -> None:
        """Note what was done; what a resumed run only repeats is noted already."""
        stopping = [decision for decision in decisions if decision.action == "stop"]
        new = [one for one in stopping or decisions if one.act is not None and not one.repeated]
        pairs = [(self._of_rule(done, decision), _facts(decision)) for decision in new]
        if not stopping:
            pairs += [(_of_person(done, request), _asked(request)) for request in requests]
        pairs.sort(key=lambda pair: pair[0].action == REWIND)  # a rewind undoes what was done before it in its step
        for entry, facts in pairs:
            self._report(done.step, entry.action, facts, entry=entry, lr_factor=done.lr_factor)
        self._add([entry for entry, _ in pairs])

    def _of_rule(self, done: Done, decision: Decision) -> Entry:
        rewinds = decision.action == REWIND
        ahead = done.ahead if isinstance(decision.act, SkipBatchesAction) else ()
        return Entry(
            number=0,
            step=done.step,
            rule=decision.rule,
            action=STOP if decision.action == "stop" else decision.action,
            rung=decision.rung,
            attempt=decision.attempt,
            skipped=tuple(done.bad if rewinds else ahead),
            factor=decision.act.factor if isinstance(decision.act, LowerLearningRateAction) else 1.0,
            went_to=done.went_to if rewinds else None,
        )

    def _add(self, entries: Sequence[Entry]) -> None:
        """Number the entries and add them; of several rewinds of one step one counts as the way back."""
        ledger = self.ledger.ledger
        first, back, numbered = ledger.next_number, False, []
        for at, entry in enumerate(entries):
            went_to = None if back else entry.went_to
            back = back or went_to is not None
            numbered.append(replace(entry, number=first + at, job_attempt=ledger.job_attempt, went_to=went_to))
        self.ledger.add(numbered)

    def _report(
        self,
        step: int,
        action: str,
        facts: Mapping[str, JsonValue],
        *,
        entry: Entry | None = None,
        lr_factor: float | None = None,
        why_not: str = "",
    ) -> None:
        skipped = () if entry is None else entry.skipped
        self.streams.event(
            "guardian",
            step=step,
            action=action,
            done=not why_not,
            why_not=why_not,
            positions_skipped=[list(pair) for pair in skipped],
            samples_skipped=sum(end - first for first, end in skipped) * self.samples,
            went_to=None if entry is None else entry.went_to,
            lr_factor=lr_factor,
            **facts,
        )


def _of_person(done: Done, request: JobRequest) -> Entry:
    if request.verb != REWIND:
        return Entry(0, done.step, "", request.verb, request=request.number)
    return Entry(
        0, done.step, "", REWIND, request=request.number, skipped=tuple(done.bad), went_to=done.went_to
    )  # fmt: skip


def _facts(decision: Decision) -> dict[str, JsonValue]:
    """Return what an event says of the decision behind an action."""
    body = decision.dump()
    told = ("rule", "metric", "severity", "action_attempt", "max_attempts", "first_step", "evidence", "reason")
    return {name: body[name] for name in told}


def _asked(request: JobRequest) -> dict[str, JsonValue]:
    return {"request": request.number, "by": request.by, "reason": f"{request.by or 'somebody'} asked for it"}
