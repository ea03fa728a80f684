"""Curves of a training as SVG: thinned lines with the range they stand for, and marks of what happened."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from deepseek_ops.web.markup import Child, Html, el
from deepseek_ops.web.training_series import Bucket, Series

COLUMN_WIDTH = 4
"""Of the picture's units for one point of a line, whatever it stands for: a chart is some kilobytes."""
LOG_RATIO = 50.0
"""Positive values that differ by more than this are drawn on a logarithmic scale."""
MAX_BAD = 60
_COLOURS = 6


@dataclass(frozen=True, slots=True)
class Line:
    """One series of a chart."""

    name: str
    series: Series


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened at a step."""

    at: float
    tone: str
    """``saved``, ``decision``, ``trouble`` or ``resumed``: its colour and shape."""
    text: str


@dataclass(frozen=True, slots=True)
class Frame:
    """Where a chart lies and what its axes span."""

    first: float
    last: float
    low: float
    high: float
    log: bool = False
    width: int = 760
    height: int = 240
    left: int = 76
    right: int = 14
    top: int = 16
    bottom: int = 26

    def x(self, at: float) -> float:
        """Return the place of a step or time."""
        span = (self.last - self.first) or 1.0
        return round(self.left + (self.width - self.left - self.right) * (at - self.first) / span, 1)

    def y(self, value: float) -> float:
        """Return the place of a value."""
        low, high, value = (math.log10(v) if self.log else v for v in (self.low, self.high, max(value, self.low)))
        share = (value - low) / ((high - low) or 1.0)
        return round(self.top + (self.height - self.top - self.bottom) * (1 - min(share, 1.0)), 1)

    @property
    def floor(self) -> int:
        return self.height - self.bottom


@dataclass(frozen=True, slots=True)
class Look:
    """How a chart is drawn."""

    shown: Callable[[float], str]
    """Value -> text of the axis."""
    along: Callable[[float], str]
    """Step or time -> text of the axis."""
    width: int = 760
    height: int = 240
    from_zero: bool = False
    top: float | None = None
    """Value at the upper edge; None lets the data decide."""
    may_log: bool = False
    binary: bool = False
    """Bytes: the axis has round numbers of KiB, MiB, GiB."""


def chart(title: str, lines: Sequence[Line], look: Look, marks: Iterable[Mark] = ()) -> Html | None:
    """Return the chart of the lines that have points; None without any."""
    lines = [line for line in lines if line.series]
    ends = [found for line in lines if (found := line.series.ends) is not None]
    if not ends:
        return None
    first, last = min(start for start, _ in ends), max(end for _, end in ends)
    drawn = [(line, line.series.columns(first, last, look.width // COLUMN_WIDTH)) for line in lines]
    frame = _frame(first, last, [column for _, columns in drawn for column in columns], look)
    told = "; ".join(_told(line, look) for line in lines)
    scale = ", logarithmic scale" if frame.log else ""
    label = f"{title}{scale}, {look.along(first)} to {look.along(last)}. {told}."
    # Not a <title> of the whole: a browser would show it over every mark.
    picture = el(
        "svg",
        el("desc", label),
        _grid(frame, look),
        [_band(frame, columns, number) for number, (_, columns) in enumerate(drawn)],
        [_curve(frame, columns, number) for number, (_, columns) in enumerate(drawn)],
        [_marks_of(frame, marks)],
        [_bad(frame, line.name, columns, look) for line, columns in drawn],
        viewBox=f"0 0 {look.width} {look.height}",
        role="img",
        aria_label=label,
        class_="plot",
    )
    legend = [
        el("li", el("span", class_=f"key lane{number % _COLOURS}"), line.name, " ", el("b", _newest(line, look)))
        for number, line in enumerate(lines)
    ]
    caption = el("figcaption", title, el("small", " log scale") if frame.log else None, el("ul", legend))
    return el("figure", caption, picture, class_="chart")


def heat_strip(columns: Sequence[Sequence[float]], steps: Sequence[float], rows: Sequence[str]) -> Html:
    """Return a strip for each expert over time: how often its even share of the tokens it got."""
    high, left = 9, 96
    cell = max(6, min(30, 900 // max(1, len(columns))))
    width, height = left + max(cell * len(columns), 80), high * len(rows) + 22
    shades: dict[int, list[str]] = {}
    for at, column in enumerate(columns):
        for number, share in enumerate(column):
            path = f"M{left + at * cell} {number * high}h{cell}v{high}h-{cell}z"
            shades.setdefault(_heat(share), []).append(path)
    cells = [el("path", d="".join(paths), class_=f"heat{shade}") for shade, paths in sorted(shades.items())]
    names = [
        el("text", name, x=left - 6, y=number * high + 8, text_anchor="end") for number, name in enumerate(rows) if name
    ]
    ends = [
        el("text", f"step {steps[0]:,.0f}", x=left, y=height - 6),
        el("text", f"{steps[-1]:,.0f}", x=width, y=height - 6, text_anchor="end") if len(columns) > 20 else None,
    ]
    label = f"Load of {len(rows)} experts over {len(columns)} intervals, as a multiple of an even share"
    return el(
        "svg", el("desc", label), cells, names, ends, viewBox=f"0 0 {width} {height}", role="img", aria_label=label,
        width=width, height=height, class_="heat",
    )  # fmt: skip


def _heat(share: float) -> int:
    """Return the shade: 0 for a dead expert, 3 for an even share, 6 for three times as much."""
    bounds = (0.02, 0.35, 0.75, 1.35, 2.0, 3.0)
    return sum(share >= bound for bound in bounds)


def _frame(first: float, last: float, columns: Sequence[Bucket], look: Look) -> Frame:
    finite = [column for column in columns if column.count]
    low = min((column.low for column in finite), default=0.0)
    high = max((column.high for column in finite), default=1.0)
    log = look.may_log and low > 0 and high / low > LOG_RATIO
    if log:
        low, high = low / 1.15, high * 1.15
    else:
        room = (high - low) * 0.06 or abs(high) * 0.05 or 1.0
        low = 0.0 if look.from_zero else low - room
        high = look.top if look.top is not None else high + room
    return Frame(first, last, low, high, log, look.width, look.height)


def _ticks(frame: Frame, *, binary: bool) -> list[float]:
    """Return round values between the edges."""
    if frame.log:
        decades = range(math.floor(math.log10(frame.low)), math.ceil(math.log10(frame.high)) + 1)
        found = [10.0**decade for decade in decades if frame.low <= 10.0**decade <= frame.high]
        if len(found) >= 2:
            return found[:: max(1, len(found) // 5)]
        return [frame.low * 1.15, math.sqrt(frame.low * frame.high), frame.high / 1.15]
    unit = 1024.0 ** int(math.log(max(frame.high, 1.0), 1024)) if binary else 1.0
    span = (frame.high - frame.low) / unit
    step = 10.0 ** math.floor(math.log10(span / 3))
    step *= next((factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 4.5), 10)
    step *= unit
    start = math.ceil(frame.low / step)
    return [number * step for number in range(start, int(frame.high / step) + 1)]


def _grid(frame: Frame, look: Look) -> list[Child]:
    right = frame.width - frame.right
    rows: list[Child] = []
    for value in _ticks(frame, binary=look.binary):
        y = frame.y(value)
        rows.append(el("path", d=f"M{frame.left} {y}H{right}", class_="grid"))
        rows.append(el("text", look.shown(value), x=frame.left - 8, y=round(y + 4, 1), text_anchor="end"))
    ends = [
        el("text", look.along(frame.first), x=frame.left, y=frame.height - 7),
        el("text", look.along(frame.last), x=right, y=frame.height - 7, text_anchor="end"),
    ]
    return [rows, ends]


def _runs(columns: Sequence[Bucket]) -> Iterable[list[Bucket]]:
    """Yield stretches of columns with values: a line is not drawn across NaN."""
    run: list[Bucket] = []
    for column in columns:
        if column.count:
            run.append(column)
        elif run:
            yield run
            run = []
    if run:
        yield run


def _curve(frame: Frame, columns: Sequence[Bucket], number: int) -> Child:
    path = "".join(
        "M" + "L".join(f"{frame.x(column.first)} {frame.y(column.mean)}" for column in run)
        + (f"h{1.5}" if len(run) == 1 else "")
        for run in _runs(columns)
    )  # fmt: skip
    return el("path", d=path, class_=f"curve lane{number % _COLOURS}") if path else None


def _band(frame: Frame, columns: Sequence[Bucket], number: int) -> Child:
    """Return the range between least and greatest values, where points were joined."""
    path = ""
    for run in _runs(columns):
        if all(column.count == 1 for column in run):
            continue
        upper = [f"{frame.x(column.first)} {frame.y(column.high)}" for column in run]
        lower = [f"{frame.x(column.first)} {frame.y(column.low)}" for column in reversed(run)]
        path += "M" + "L".join([*upper, *lower]) + "Z"
    return el("path", d=path, class_=f"band fill{number % _COLOURS}") if path else None


def _marks_of(frame: Frame, marks: Iterable[Mark]) -> list[Child]:
    drawn: list[Child] = []
    taken: set[tuple[str, int]] = set()
    for mark in marks:
        x = frame.x(mark.at)
        place = (mark.tone, int(x / (3 if mark.tone == "saved" else 2)))
        if not frame.first <= mark.at <= frame.last or place in taken:
            continue
        taken.add(place)
        shape = (
            el("path", d=f"M{x} {frame.floor - 7}V{frame.floor}")
            if mark.tone == "saved"
            else [
                el("path", d=f"M{x} {frame.top}V{frame.floor}"),
                el("path", d=f"M{x} {frame.top - 9}l5 6l-5 6l-5 -6Z", class_="sign"),
            ]
        )
        drawn.append(el("g", el("title", mark.text), shape, class_=f"mark-{mark.tone}"))
    return drawn


def _bad(frame: Frame, name: str, columns: Sequence[Bucket], look: Look) -> list[Child]:
    """Return a cross at the top for each column with points that are no number."""
    crosses: list[Child] = []
    for column in [column for column in columns if column.bad][-MAX_BAD:]:
        x, y = frame.x(column.bad_at), frame.top + 8
        text = f"{name}: {column.bad} x NaN or infinite from {look.along(column.bad_at)}"
        shape = el("path", d=f"M{x - 4} {y - 4}l8 8m0 -8l-8 8")
        crosses.append(el("g", el("title", text), shape, class_="mark-bad"))
    return crosses


def _newest(line: Line, look: Look) -> str:
    value = line.series.last
    return "" if value is None else look.shown(value) if math.isfinite(value) else str(value)


def _told(line: Line, look: Look) -> str:
    columns = line.series.columns(*(line.series.ends or (0.0, 1.0)), 1)
    finite = [column for column in columns if column.count]
    bad = sum(column.bad for column in columns)
    told = f"{line.name}: newest {_newest(line, look)}"
    if finite:
        told += f", least {look.shown(min(c.low for c in finite))}, greatest {look.shown(max(c.high for c in finite))}"
    return told + (f", {bad} points NaN or infinite" if bad else "")
