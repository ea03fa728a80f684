"""Which rank is slower than its peers, from what each says of its own work: no collective is added for it.

Ranks of one training finish every step together, so their step times are equal and say nothing. What differs is how
long each works before it waits for the others (``busy_seconds`` of ``JobContext.progress``). A rank is a straggler
when even its better steps (the lower quartile of the last 20) take more than 1.3 times as long as the median step of
the other ranks. One hiccup is not enough, and one bad rank among two is told from a good one.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deepseek_ops.jobs.progress import ProgressPage

WINDOW = 20
"""Steps that are compared, and between two comparisons."""
RATIO = 1.3
LEAST_SECONDS = 0.002
"""A difference below this is noise, whatever its ratio."""
REMIND_WINDOWS = 25
"""Comparisons after which a straggler that stays one is reported again."""
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Straggler:
    """A rank that its peers wait for."""

    rank: int
    ratio: float
    busy_seconds: float
    """Median of its own work in a step."""
    others_seconds: float
    """The same of the median of the other ranks."""
    cpu_share: float
    """Share of the window in which it had a CPU: much less than its peers' means that others take it away."""


class StragglerWatch:
    """Compares the ranks of one node with each other, and with those of other nodes."""

    def __init__(self, pids: Mapping[int, int], now: float) -> None:
        self._pids = pids
        self._compared = 0
        self._unreported = 0
        self._slow: frozenset[int] = frozenset()
        self._cpu = {rank: cpu_seconds(pid) for rank, pid in pids.items()}
        self._since = now

    def look(
        self, pages: Mapping[int, ProgressPage], elsewhere: Mapping[int, float], now: float
    ) -> list[Straggler] | None:
        """Return the stragglers among ``pages``: an empty list when there are none any more, None when nothing is new.

        ``elsewhere`` has the median busy seconds of ranks on other nodes.
        """
        if len(pages) + len(elsewhere) < 2:
            return None
        steps = min(page.num_busy for page in pages.values())
        if steps < self._compared + WINDOW:
            return None
        self._compared = steps
        found = stragglers(pages, elsewhere, self._cpu_shares(now))
        slow = frozenset(straggler.rank for straggler in found)
        self._unreported += 1
        if slow == self._slow and not (slow and self._unreported >= REMIND_WINDOWS):
            return None
        self._slow, self._unreported = slow, 0
        return found

    def _cpu_shares(self, now: float) -> dict[int, float]:
        used = {rank: cpu_seconds(pid) for rank, pid in self._pids.items()}
        elapsed = max(now - self._since, 1e-9)
        shares = {rank: max(0.0, used[rank] - self._cpu[rank]) / elapsed for rank in used}
        self._cpu, self._since = used, now
        return shares


def stragglers(
    pages: Mapping[int, ProgressPage], elsewhere: Mapping[int, float], cpu_shares: Mapping[int, float]
) -> list[Straggler]:
    """Return the ranks of ``pages`` that are persistently slower than the others, the slowest first."""
    windows = {rank: sorted(page.busy[-WINDOW:]) for rank, page in pages.items() if page.num_busy}
    medians = {**elsewhere, **{rank: statistics.median(window) for rank, window in windows.items()}}
    found = []
    for rank, window in windows.items():
        others = [median for other, median in medians.items() if other != rank]
        if not others:
            continue
        usual, better = statistics.median(others), window[len(window) // 4]
        if better > RATIO * usual and better - usual > LEAST_SECONDS:
            ratio = medians[rank] / max(usual, 1e-9)
            found.append(Straggler(rank, ratio, medians[rank], usual, cpu_shares.get(rank, 0.0)))
    return sorted(found, key=lambda straggler: -straggler.ratio)


def cpu_seconds(pid: int) -> float:
    """Return the CPU seconds that the process has used, all its threads; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS
