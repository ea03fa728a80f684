"""When silence is a hang: a pure judgement of how long the ranks have said nothing, at what they were.

A collective that one rank never enters makes all others wait, with no error for the half hour that gloo and NCCL give
it, so what can be seen is that nobody gets any further. How long that has to last follows from the training itself:
``max(60 s, 5 x median step)``, or ``JobSpec.hang_seconds``. Whatever else takes long has a patience of its own: the
first step compiles and allocates, a validation or a checkpoint may take many steps' time; each is given at least
``PATIENCE`` of it and five times the longest that was seen. What may take hours because it is large, such as fetching
a checkpoint or cutting it anew, says that it is alive while it gets on (``working``). A trainer that never says how far
it is is never judged. A script's loop is judged as ours is once ``KNOWN`` of its steps are, or one and the job has a
limit of its own; between its epochs, and before, it has the patience that code nobody knows needs.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from deepseek_ops.jobs.progress import STEPPING, Phase, ProgressPage, Pulse

STEP_SECONDS = 60.0
FACTOR = 5.0
KNOWN = 3
"""Steps after which those of a script are taken for what its steps are like."""
FIRST_STEP_SECONDS = 600.0
"""Silence before the first whole step that may be compilation."""
PATIENCE: Mapping[Phase, float] = {
    "starting": 1800.0,
    "evaluating": 900.0,
    "checkpointing": 900.0,
    "publishing": 3600.0,
    "restoring": 1800.0,
    "scripted": 1800.0,
    "away": math.inf,
}
"""Seconds without a word that are no hang in these phases."""
FROZEN_SECONDS = 10.0
"""Between two looks of a watch that looks twice a second: it was frozen itself, and the ranks surely with it."""


@dataclass(frozen=True, slots=True)
class Hang:
    """Ranks that say nothing any more."""

    silence: float
    limit: float
    pulses: Mapping[int, Pulse]
    """Where each rank stopped; ranks that never spoke are missing."""

    @property
    def behind(self) -> tuple[int, ...]:
        """The ranks that have done fewer steps than others; empty when all are as far."""
        least = min(pulse.step for pulse in self.pulses.values())
        ranks = tuple(sorted(rank for rank, pulse in self.pulses.items() if pulse.step == least))
        return ranks if len(ranks) < len(self.pulses) else ()


class HangWatch:
    """Looks at the ranks' pages of one start of them. ``limit_seconds``: JobSpec.hang_seconds."""

    def __init__(self, limit_seconds: float | None) -> None:
        self._limit = limit_seconds
        self._looked: float | None = None
        self._not_before = 0.0

    def look(self, pages: Mapping[int, ProgressPage], now: float, *, heard: float = 0.0) -> Hang | None:
        """Return the hang of the ranks whose pages these are, or None while they may be working.

        ``now`` is the monotonic clock in seconds. Ranks that have returned are not among ``pages``. ``heard``: when a
        rank of another node last said anything; its peers here may be waiting for what it does.
        """
        if self._looked is not None and now - self._looked > FROZEN_SECONDS:
            self._not_before = now
        self._looked = now
        pulses = {rank: pulse for rank, page in pages.items() if (pulse := page.pulse) is not None}
        if not pulses or self._limit == 0:
            return None
        silence = now - max(self._not_before, _last_word(pulses, heard, everybody=len(pulses) == len(pages)))
        if silence <= (self._limit or STEP_SECONDS):
            return None
        limit = self._patience(pages, pulses)
        return Hang(silence, limit, pulses) if silence > limit else None

    def _patience(self, pages: Mapping[int, ProgressPage], pulses: Mapping[int, Pulse]) -> float:
        """Return the seconds of silence that are allowed: what the most patient rank's phase allows."""
        phases = {pulse.phase for pulse in pulses.values()}
        if len(pulses) < len(pages):
            phases.add("starting")
        return max(self._patience_of(phase, pages) for phase in phases)

    def _patience_of(self, phase: Phase, pages: Mapping[int, ProgressPage]) -> float:
        if phase not in STEPPING:
            longest = max(page.longest(phase) for page in pages.values())
            return max(PATIENCE[phase], FACTOR * longest, self._limit or 0.0)
        intervals = [interval for page in pages.values() for interval in page.intervals]
        known = max(len(page.intervals) for page in pages.values())
        if phase == "scripted" and self._limit is None and known < KNOWN:
            return PATIENCE[phase]
        if not known:
            return max(FIRST_STEP_SECONDS, self._limit or 0.0)
        return self._limit or max(STEP_SECONDS, FACTOR * statistics.median(intervals))


def _last_word(pulses: Mapping[int, Pulse], heard: float, *, everybody: bool) -> float:
    """Return when the silence began.

    While all ranks are in their steps, the one that is silent longest counts: the others may be going on without it.
    While one does something long, its peers wait for it without a word, so the newest word of any of them counts.
    """
    words = [pulse.at for pulse in pulses.values()]
    stepping = everybody and all(pulse.phase in STEPPING for pulse in pulses.values())
    return min(words) if stepping else max(*words, heard)
