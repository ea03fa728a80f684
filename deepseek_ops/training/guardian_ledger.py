"""What the guardian has done to a run: a list that only grows, and that neither a rewind nor a resume undoes.

Attempts are counted here, so a run that goes back to an older state does not get them back and cannot loop for ever.
A run that is killed goes on from a checkpoint and comes to the same decisions at the same steps again; what it did then
is *replayed* from here instead of being counted a second time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from pydantic import JsonValue

from deepseek_ops.training.positions import united

STOP = "stop_training"
REWIND = "rewind"


@dataclass(frozen=True, slots=True)
class Entry:
    """One action that was carried out."""

    number: int
    step: int
    """Optimiser steps done when it was decided."""
    rule: str
    """Title of the rule; empty for a person's request."""
    action: str
    rung: int = 0
    """Place of the action in the rule's ladder."""
    attempt: int = 1
    skipped: tuple[tuple[int, int], ...] = ()
    """Batch positions that it leaves out."""
    factor: float = 1.0
    """What it multiplies the learning rate by."""
    went_to: int | None = None
    """For a rewind: the step it went back to."""
    request: int = 0
    """Number of the person's request that it obeys."""
    requests_of: str = ""
    """Whose requests are numbered so: a run may be trained by several jobs, and each counts its own from 1."""
    job_attempt: int = 1

    def dump(self) -> dict[str, JsonValue]:
        """Return the entry as JSON; floats keep every bit."""
        return {
            "number": self.number,
            "step": self.step,
            "rule": self.rule,
            "action": self.action,
            "rung": self.rung,
            "attempt": self.attempt,
            "skipped": [[first, end] for first, end in self.skipped],
            "factor": repr(self.factor),
            "went_to": self.went_to,
            "request": self.request,
            "requests_of": self.requests_of,
            "job_attempt": self.job_attempt,
        }

    @classmethod
    def load(cls, body: Mapping[str, JsonValue]) -> Entry:
        """Return what ``dump`` wrote."""
        skipped, went_to = body["skipped"], body["went_to"]
        return cls(
            number=int(str(body["number"])),
            step=int(str(body["step"])),
            rule=str(body["rule"]),
            action=str(body["action"]),
            rung=int(str(body["rung"])),
            attempt=int(str(body["attempt"])),
            skipped=tuple(_pair(item) for item in skipped) if isinstance(skipped, list) else (),
            factor=float(str(body["factor"])),
            went_to=None if went_to is None else int(str(went_to)),
            request=int(str(body["request"])),
            requests_of=str(body.get("requests_of", "")),
            job_attempt=int(str(body["job_attempt"])),
        )


@dataclass
class Ledger:
    """The entries of one run, oldest first."""

    entries: list[Entry] = field(default_factory=list)
    job_attempt: int = 1
    requests_of: str = ""
    """The job that trains now, told from every other that has had its name."""

    @property
    def next_number(self) -> int:
        return 1 + max((entry.number for entry in self.entries), default=0)

    @property
    def timeline(self) -> list[Entry]:
        """The entries that lie on the way to where the run is now: a rewind drops those of the steps it undid.

        A rewind itself stays: the run is behind it, whatever state it loads.
        """
        way: list[Entry] = []
        for entry in self.entries:
            if entry.went_to is not None:
                way = [past for past in way if past.went_to is not None or past.step <= entry.went_to]
            way.append(entry)
        return way

    @property
    def rewinds(self) -> int:
        """How often the run went back."""
        return sum(entry.went_to is not None for entry in self.entries)

    @property
    def last_rewind_to(self) -> int | None:
        """The step that the newest rewind went back to."""
        return next((entry.went_to for entry in reversed(self.entries) if entry.went_to is not None), None)

    @property
    def obeyed(self) -> int:
        """Number of the newest request of a person that was obeyed, of those that were made to this job."""
        own = ("", self.requests_of)
        return max((entry.request for entry in self.entries if entry.requests_of in own), default=0)

    def taken(self, rule: str, step: int) -> Entry | None:
        """Return what was done at this step of this timeline for the rule, if this run is a repetition of it.

        A stop is repeated only by the attempt that stopped: whoever resubmits the run wants it to go on.
        """
        return next(
            (
                entry
                for entry in reversed(self.timeline)
                if entry.rule == rule
                and entry.step == step
                and entry.action != REWIND
                and (entry.action != STOP or entry.job_attempt == self.job_attempt)
            ),
            None,
        )

    def used(self, rule: str, rung: int | None = None) -> int:
        """Return how often the rule has acted (with this rung of its ladder), stops aside, since its budget began.

        A resubmission of a run that a rule had stopped starts with new attempts.
        """
        return sum(
            entry.rule == rule and entry.action != STOP and rung in (None, entry.rung) for entry in self._counted()
        )

    def skipped(self) -> list[tuple[int, int]]:
        """Return all positions that were ever left out, as united ranges.

        Those of an action that a resumed run has not come to yet are among them: they lie ahead of every step that
        it repeats, so they move none of them.
        """
        return united(pair for entry in self.entries for pair in entry.skipped)

    def factor_at(self, step: int) -> float:
        """Return what the learning rate is multiplied by after ``step`` steps.

        A rate that was lowered on a way that a rewind undid stays lowered: going back heals the weights, not the cause.
        """
        ahead = {entry.number for entry in self.timeline if entry.step > step}
        factor = 1.0
        for entry in self.entries:
            factor *= 1.0 if entry.number in ahead else entry.factor
        return factor

    def add(self, entry: Entry) -> None:
        """Append an entry; a request that it obeys is this job's."""
        self.entries.append(replace(entry, requests_of=self.requests_of) if entry.request else entry)

    def dump(self) -> list[JsonValue]:
        """Return the entries as JSON."""
        return [entry.dump() for entry in self.entries]

    @classmethod
    def load(cls, bodies: Iterable[JsonValue], *, job_attempt: int, requests_of: str = "") -> Ledger:
        """Return the ledger of these entries; of two with one number, the first counts."""
        found: dict[int, Entry] = {}
        for body in bodies:
            if isinstance(body, Mapping):
                entry = Entry.load(body)
                found.setdefault(entry.number, entry)
        return cls([found[number] for number in sorted(found)], job_attempt, requests_of)

    def _counted(self) -> Sequence[Entry]:
        start = max(
            (
                at + 1
                for at, entry in enumerate(self.entries)
                if entry.action == STOP and entry.job_attempt < self.job_attempt
            ),
            default=0,
        )
        return self.entries[start:]


def _pair(item: JsonValue) -> tuple[int, int]:
    first, end = item if isinstance(item, list) else (0, 0)
    return int(str(first)), int(str(end))
