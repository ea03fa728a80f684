"""Pictures of a dataset's history as SVG: the graph of versions, one strip for each row, and sizes over time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deepseek_ops.core.records import Digest
from deepseek_ops.data.history import LogEntry
from deepseek_ops.data.progress import readable
from deepseek_ops.web.markup import Html, el

ROW_HEIGHT = 56
LANE_WIDTH = 18
COLOURS = 6
MAX_LANES = 12
_PLOT_WIDTH, _PLOT_HEIGHT, _LEFT, _TOP, _BOTTOM = 720, 200, 78, 14, 26


@dataclass(frozen=True, slots=True)
class Strip:
    """What the graph draws beside one version."""

    lane: int
    above: tuple[int, ...]
    """Lanes that come in from the row above."""
    links: tuple[tuple[int, int], ...]
    """Lines from a lane at this row to a lane at the next."""


def strips(history: Sequence[LogEntry]) -> list[Strip]:
    """Return the strip of each version; versions come before what they were made from."""
    lanes: list[Digest | None] = []
    drawn: list[Strip] = []
    for entry in history:
        if entry.version not in lanes:
            _put(lanes, entry.version)
            above = tuple(at for at, waits in enumerate(lanes) if waits and waits != entry.version)
        else:
            above = tuple(at for at, waits in enumerate(lanes) if waits)
        lane = lanes.index(entry.version)
        before = list(lanes)
        for at, waits in enumerate(lanes):
            if waits == entry.version:
                lanes[at] = None
        ends = [_place(lanes, parent, lane) for parent in entry.parents]
        links = [(at, at) for at, waits in enumerate(before) if waits and waits != entry.version]
        drawn.append(Strip(lane, above, (*links, *((lane, end) for end in ends))))
    return drawn


def _put(lanes: list[Digest | None], version: Digest) -> int:
    if None in lanes:
        at = lanes.index(None)
        lanes[at] = version
        return at
    lanes.append(version)
    return len(lanes) - 1


def _place(lanes: list[Digest | None], parent: Digest, lane: int) -> int:
    """Return the lane in which a parent is waited for: one that is there, the child's own if free, or a new one."""
    if parent in lanes:
        return lanes.index(parent)
    if lanes[lane] is None:
        lanes[lane] = parent
        return lane
    return _put(lanes, parent)


def strip_svg(strip: Strip, width: int) -> Html:
    """Return the picture of one strip; it is decoration, the parents stand in the text."""
    middle = ROW_HEIGHT // 2
    lines = [_line(at, 0, at if at != strip.lane else strip.lane, middle) for at in strip.above if at < MAX_LANES]
    joins = [_curve(start, end, middle) for start, end in strip.links if max(start, end) < MAX_LANES]
    dot = el("circle", cx=_x(strip.lane), cy=middle, r=5, class_=f"dot lane{strip.lane % COLOURS}")
    return el(
        "svg",
        lines,
        joins,
        dot,
        width=(min(width, MAX_LANES) + 1) * LANE_WIDTH,
        height=ROW_HEIGHT,
        aria_hidden="true",
        class_="graph",
    )


def _x(lane: int) -> int:
    return LANE_WIDTH * min(lane, MAX_LANES) + LANE_WIDTH // 2 + 2


def _line(start: int, top: int, end: int, bottom: int) -> Html:
    return el("path", d=f"M{_x(start)} {top}L{_x(end)} {bottom}", class_=f"edge lane{start % COLOURS}")


def _curve(start: int, end: int, middle: int) -> Html:
    bend = (middle + ROW_HEIGHT) // 2
    path = f"M{_x(start)} {middle}C{_x(start)} {bend} {_x(end)} {bend} {_x(end)} {ROW_HEIGHT}"
    return el("path", d=path, class_=f"edge lane{max(start, end) % COLOURS}")


def size_plot(newest_first: Sequence[LogEntry], *, name: str) -> Html | None:
    """Return a plot of bytes by version, oldest left; None for fewer than two versions."""
    entries = list(reversed(newest_first))
    if len(entries) < 2:
        return None
    most = max(entry.num_bytes for entry in entries) or 1
    points = [(_across(at, len(entries)), _down(entry.num_bytes, most)) for at, entry in enumerate(entries)]
    line = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    floor = _down(0, most)
    area = f"{line}L{points[-1][0]:.1f} {floor:.1f}L{points[0][0]:.1f} {floor:.1f}Z"
    dots = [
        el("g", el("title", _tip(entry)), el("circle", cx=round(x, 1), cy=round(y, 1), r=4), class_="point")
        for entry, (x, y) in zip(entries, points, strict=True)
    ]
    scale = [_tick(most * share / 2, most) for share in range(3)]
    first, last = entries[0], entries[-1]
    ends = [
        el("text", first.at[:10] or "first", x=_LEFT, y=_PLOT_HEIGHT - 6),
        el("text", last.at[:10] or "newest", x=_PLOT_WIDTH - 10, y=_PLOT_HEIGHT - 6, text_anchor="end"),
    ]
    told = f"{name}: from {readable(first.num_bytes)} to {readable(last.num_bytes)} over {len(entries)} versions"
    return el(
        "svg",
        el("title", told),
        scale,
        el("path", d=area, class_="area"),
        el("path", d=line, class_="curve"),
        dots,
        ends,
        viewBox=f"0 0 {_PLOT_WIDTH} {_PLOT_HEIGHT}",
        role="img",
        aria_label=told,
        class_="plot",
    )


def _across(at: int, count: int) -> float:
    return _LEFT + (_PLOT_WIDTH - _LEFT - 10) * at / (count - 1)


def _down(size: float, most: int) -> float:
    return _TOP + (_PLOT_HEIGHT - _TOP - _BOTTOM) * (1 - size / most)


def _tick(size: float, most: int) -> Html:
    y = round(_down(size, most), 1)
    line = el("path", d=f"M{_LEFT} {y}H{_PLOT_WIDTH - 10}", class_="grid")
    return el("g", line, el("text", readable(int(size)), x=_LEFT - 8, y=y + 4, text_anchor="end"))


def _tip(entry: LogEntry) -> str:
    return f"{entry.at} {entry.message}: {entry.num_files:,} files, {readable(entry.num_bytes)}"
