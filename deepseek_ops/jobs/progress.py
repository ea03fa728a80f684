"""A rank's pulse: where it is, since when, and how long its own work takes, in a page of memory it shares.

The rank writes a few numbers after every step; who watches it (the process that forked it) reads them without asking,
so a rank that hangs, or holds the interpreter's lock for ever, still tells where it stopped. Nothing is sent and no
lock is taken: every number is one aligned store of eight bytes, and a reader that comes between two of them sees a
step that is a moment old. Times are CLOCK_MONOTONIC, the same for all processes of a machine.

What the training loop says::

    context.progress(step, "starting")               # once, first of all: from here on the watch is on
    context.progress(step)                           # right before the first step, and after every one
    context.progress(step, busy_seconds=seconds)     # the same, with what this rank did by itself in the step
    context.progress(step, "evaluating")             # before a validation; checkpointing and publishing likewise
    with context.phase("restoring"): ...             # the same for a while: then what it was at before
    with context.working(): ...                      # work of its own that takes as long as it takes, see ``working``

``step`` counts finished steps. ``busy_seconds`` is the part of the step in which the rank did not wait for others:
loading the batches and the forward passes (with ZeRO-3, whose forward gathers weights, what is measurable without
them). It is what stragglers are found by, see ``stragglers``.
"""

from __future__ import annotations

import mmap
import time
from dataclasses import dataclass
from typing import Literal, get_args

Phase = Literal["starting", "step", "evaluating", "checkpointing", "publishing", "restoring", "scripted", "away"]
"""What a rank is at. Each has a patience of its own, see ``hang``.

``scripted``: a step of somebody else's loop, which may do anything in between; ``away``: in code that says nothing.
"""

PHASES: tuple[Phase, ...] = get_args(Phase)
STEPPING: frozenset[Phase] = frozenset(("step", "scripted"))
"""Phases of a training loop between two of its steps."""
RING = 64
"""How many of the newest steps are kept."""

_BEATS, _STEP, _PHASE, _AT, _SINCE, _INTERVALS, _BUSIES = range(7)
_LONGEST = 8
_INTERVAL = _LONGEST + 8
_BUSY = _INTERVAL + RING
_WORDS = _BUSY + RING
_STEPPING = frozenset(PHASES.index(phase) for phase in STEPPING)


@dataclass(frozen=True, slots=True)
class Pulse:
    """What a rank said last. Times are seconds of the monotonic clock."""

    step: int
    phase: Phase
    at: float
    since: float
    """When it entered the phase."""


class ProgressPage:
    """The page of one rank: made before the fork, written by the rank, read by the process that forked it."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, _WORDS * 8)  # anonymous and shared: a forked child writes to the same page
        self._numbers = memoryview(self._memory).cast("q")
        self._seconds = memoryview(self._memory).cast("d")

    def beat(self, step: int, phase: Phase, busy_seconds: float | None = None) -> None:
        """Say that ``step`` steps are done and what comes now; a microsecond."""
        numbers, seconds, now = self._numbers, self._seconds, time.monotonic()
        number = PHASES.index(phase)
        spoke, before = numbers[_BEATS] > 0, numbers[_PHASE]
        if spoke and before == number and number in _STEPPING and step > numbers[_STEP]:
            self._keep(_INTERVALS, _INTERVAL, (now - seconds[_AT]) / (step - numbers[_STEP]))
        if busy_seconds is not None:
            self._keep(_BUSIES, _BUSY, busy_seconds)
        if not spoke or before != number:
            if spoke:
                seconds[_LONGEST + before] = max(seconds[_LONGEST + before], now - seconds[_SINCE])
            seconds[_SINCE] = now
        numbers[_STEP], numbers[_PHASE], seconds[_AT] = step, number, now
        numbers[_BEATS] += 1

    def touch(self) -> None:
        """Say that the rank is still at what it said last."""
        self._seconds[_AT] = time.monotonic()
        self._numbers[_BEATS] += 1

    @property
    def beats(self) -> int:
        """How often the rank has said anything."""
        return self._numbers[_BEATS]

    @property
    def pulse(self) -> Pulse | None:
        """What the rank said last; None when it never said anything."""
        if not self._numbers[_BEATS]:
            return None
        phase = PHASES[self._numbers[_PHASE]]
        return Pulse(self._numbers[_STEP], phase, self._seconds[_AT], self._seconds[_SINCE])

    @property
    def intervals(self) -> list[float]:
        """Seconds of each of the newest steps, oldest first, without what lay between steps."""
        return self._kept(_INTERVALS, _INTERVAL)

    @property
    def busy(self) -> list[float]:
        """Seconds of own work in each of the newest steps, oldest first."""
        return self._kept(_BUSIES, _BUSY)

    @property
    def num_busy(self) -> int:
        """Steps whose own work was told, ever."""
        return self._numbers[_BUSIES]

    def longest(self, phase: Phase) -> float:
        """Return the seconds that the longest finished stay in a phase took; 0 when there was none."""
        return self._seconds[_LONGEST + PHASES.index(phase)]

    def _keep(self, counter: int, ring: int, value: float) -> None:
        count = self._numbers[counter]
        self._seconds[ring + count % RING] = value
        self._numbers[counter] = count + 1

    def _kept(self, counter: int, ring: int) -> list[float]:
        count = self._numbers[counter]
        return [self._seconds[ring + number % RING] for number in range(max(0, count - RING), count)]
