"""What ``data_versioning.py`` prints: a table for people, and each goal as a ratio that is met or missed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

STEPS = {
    "first": "first commit + push",
    "unchanged": "nothing changed",
    "changed": "1 % changed, commit + push",
    "diff": "diff",
    "back": "checkout back",
    "forth": "checkout forth",
    "fresh": "fresh folder, verified",
    "collect": "gc",
    "push": "push of packs alone",
}
Figures = Mapping[str, Mapping[str, float]]
"""Name of what ran -> cpu, wall, rss_mb and what it counted."""


@dataclass(frozen=True)
class Goal:
    """One promise as a ratio."""

    name: str
    ratio: float
    limit: float
    at_least: bool
    wall: float = 0.0
    """The same ratio in wall time, where it says anything."""

    @property
    def met(self) -> bool:
        return self.ratio >= self.limit if self.at_least else self.ratio <= self.limit

    def line(self) -> str:
        sign = ">=" if self.at_least else "<="
        wall = f"{self.wall:8.2f}" if self.wall else " " * 8
        return f"{self.name:<52}{self.ratio:9.2f}{wall}   {sign} {self.limit:<6g} {'met' if self.met else 'MISSED'}"


def goals(where: str, ours: Figures, floor: Figures, peer: Figures) -> Iterator[Goal]:
    """Yield the goals that the figures of one store say something about."""

    def against(name: str, one: str, below: Mapping[str, float], limit: float) -> Goal:
        mine = ours[one]
        return Goal(f"{where}: {name}", mine["cpu"] / below["cpu"], limit, False, mine["wall"] / below["wall"])

    yield against("commit / (read + sha256 + plain write)", "first", floor["write"], 1.5)
    yield against("nothing changed / (scandir + stat)", "unchanged", floor["stat"], 3)
    yield against("fresh verified folder / (create + sha256)", "fresh", floor["create"], 1.7)
    yield against("1 % commit / full commit", "changed", ours["first"], 0.15)
    first = ours["first"]
    allowed = first["bytes"] / (8 << 20) + first["pages"] + 3
    yield Goal(f"{where}: PUT requests / (bytes / 8 MiB + pages + 3)", first["puts"] / allowed, 1, False)
    yield Goal(f"{where}: peak memory of any step, MB", max(one["rss_mb"] for one in ours.values()), 500, False)
    if "put" in floor:
        raw, push = floor["put"], ours["push"]
        rate, wall = raw["cpu"] / push["cpu"], raw["wall"] / push["wall"]
        yield Goal(f"{where}: push of packs, rate / raw PUT", rate, 0.8, True, wall)
    if peer:
        s3 = where == "s3"
        for name, step, limit in (
            ("DVC add + push / ours", "first", 30 if s3 else 8),
            ("DVC diff / ours", "diff", 40),
            *([("DVC pull / ours", "fresh", 15)] if s3 else []),
        ):
            mine, theirs = ours[step], peer[step]
            yield Goal(f"{where}: {name}", theirs["cpu"] / mine["cpu"], limit, True, theirs["wall"] / mine["wall"])


def table(where: str, ours: Figures, floor: Figures, peer: Figures) -> Iterator[str]:
    """Yield the lines of one store's table."""
    yield f"\n{where}: seconds of CPU | wall, peak memory, PUTs"
    yield f"{'':<28}{'ours':>17}{'MB':>6}{'PUTs':>6}{'server':>8}{'+ import':>10}{'DVC':>18}{'MB':>6}{'server':>8}"
    for key, label in STEPS.items():
        if key in ours:
            mine, theirs = ours[key], peer.get(key)
            right = f"{_pair(theirs):>18}{theirs['rss_mb']:6.0f}{_server(theirs)}" if theirs else ""
            puts = f"{mine['puts']:6.0f}" if "puts" in mine else " " * 6
            start = mine["import_cpu"]
            yield f"{label:<28}{_pair(mine):>17}{mine['rss_mb']:6.0f}{puts}{_server(mine)}{start:10.2f}{right}"
    if "start" in peer:
        yield f"{'start of the program alone':<69}{_pair(peer['start']):>18}"
    for key, figures in floor.items():
        yield f"  floor: {key:<19}{_pair(figures):>17}"


def _server(figures: Mapping[str, float]) -> str:
    return f"{figures['server_cpu']:8.2f}" if "server_cpu" in figures else " " * 8


def _pair(figures: Mapping[str, float]) -> str:
    return f"{figures['cpu']:.3f} | {figures['wall']:.2f}"
