"""Durations, percentages and spans as people write them: parsed, never guessed.

A bare number is refused everywhere a unit matters: ``30`` may mean seconds to one reader and minutes to another.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta

from deepseek_ops.core.errors import PermanentError

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
_PART = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s?([a-z]+)\s*")
_PERCENT = re.compile(r"(\d{1,3}(?:\.\d{1,6})?)\s?%")
_STEPS = re.compile(r"(\d{1,9})\s?steps?")
_LONGEST = timedelta(days=366)


@dataclass(eq=False)
class QuantityError(PermanentError, ValueError):
    """A text is not the quantity it should be. ``expected`` shows the accepted form."""

    text: str
    expected: str

    def __str__(self) -> str:
        return f"{self.text!r} is not {self.expected}"


@dataclass(frozen=True, slots=True)
class Span:
    """How long something must last: a number of training steps, or a time. Exactly one of the two is set."""

    steps: int = 0
    time: timedelta = timedelta(0)

    def __str__(self) -> str:
        return f"{self.steps} steps" if self.steps else format_duration(self.time)


def parse_duration(text: object) -> timedelta:
    """Return the time that ``text`` names, such as ``30m``, ``2h`` or ``1h30m``; units are s, m, h, d, w.

    Raises QuantityError for a bare number, an unknown or repeated unit, zero, and more than 366 days.
    """
    expected = "a duration with a unit such as 90s, 30m, 2h or 1h30m (at most 366d)"
    if isinstance(text, timedelta):
        return text
    if not isinstance(text, str):
        raise QuantityError(str(text), expected)
    rest, total, seen = text.strip(), timedelta(0), set[str]()
    while rest:
        part = _PART.match(rest)
        if part is None or part[2] not in _SECONDS or part[2] in seen:
            raise QuantityError(text, expected)
        seen.add(part[2])
        total += timedelta(seconds=float(part[1]) * _SECONDS[part[2]])
        rest = rest[part.end() :]
    if not timedelta(0) < total <= _LONGEST:
        raise QuantityError(text, expected)
    return total


def format_duration(time: timedelta) -> str:
    """Return ``time`` in the largest unit that divides it; ``parse_duration`` reads it back to the same value."""
    seconds = time.total_seconds()
    for unit in ("w", "d", "h", "m"):
        if seconds and seconds % _SECONDS[unit] == 0:
            return f"{int(seconds // _SECONDS[unit])}{unit}"
    return f"{int(seconds)}s" if seconds == int(seconds) else f"{seconds:.6f}".rstrip("0") + "s"


def parse_percent(text: object) -> float:
    """Return the percentage that ``text`` names, 20.0 for ``20%``.

    Raises QuantityError without the sign (0.2 and 20 could both mean a fifth) and above 100.
    """
    match = _PERCENT.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None or float(match[1]) > 100:
        raise QuantityError(str(text), "a percentage from 0% to 100%, written with its sign, such as 20%")
    return float(match[1])


def format_percent(percent: float) -> str:
    """Return ``percent`` with its sign; ``parse_percent`` reads it back."""
    return f"{int(percent)}%" if percent == int(percent) else f"{percent:.6f}".rstrip("0") + "%"


def parse_span(text: object) -> Span:
    """Return the span that ``text`` names: ``3 steps`` or a duration such as ``30s``. Raises QuantityError."""
    if isinstance(text, Span):
        return text
    match = _STEPS.fullmatch(text.strip()) if isinstance(text, str) else None
    if match and int(match[1]) > 0:
        return Span(steps=int(match[1]))
    try:
        return Span(time=parse_duration(text))
    except QuantityError:
        raise QuantityError(str(text), "a number of steps such as '3 steps', or a duration such as 30s") from None
