"""What is looked at while ranks run: whether they get any further, and whether one of them keeps the others waiting.

Findings become events of the job. ``hang``: which ranks are behind, at which step and phase; ``stacks``: where each
rank's code is, the whole dump in a file below the job's folder; ``stragglers``: who is slow, by how much, and what
speaks for it.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

from deepseek_ops.core.jobs import JobCause, JobSpec
from deepseek_ops.jobs.entry import Outcome
from deepseek_ops.jobs.hang import Hang, HangWatch
from deepseek_ops.jobs.rank_process import RankProcess
from deepseek_ops.jobs.rendezvous import NodePace, RankPace
from deepseek_ops.jobs.stacks import MAX_FRAMES, Stack, dump_stacks
from deepseek_ops.jobs.stragglers import WINDOW, Straggler, StragglerWatch

SHARE_SECONDS = 5.0
"""How often a node tells the others how far its ranks are."""
STACKS = "stacks"
"""Folder of the dumps, below the job's."""

Say = Callable[..., None]
"""Appends an event of a kind with fields; a full disk is not its caller's business."""


class RankWatch:
    """The watch over one start of the ranks of one node."""

    def __init__(self, spec: JobSpec, node: int, ranks: Sequence[RankProcess], say: Say) -> None:
        now = time.monotonic()
        self._spec = spec
        self._node = node
        self._ranks = {process.rank: process for process in ranks}
        self._say = say
        self._hangs = HangWatch(spec.hang_seconds)
        self._stragglers = StragglerWatch({process.rank: process.pid for process in ranks}, now)
        self._shared_at = now
        self._elsewhere: dict[int, RankPace] = {}
        self._heard = 0.0
        """When a rank of another node last said anything."""

    def look(self, running: Mapping[int, int], peers: Sequence[NodePace]) -> Hang | None:
        """Return the hang of the ranks that still run (process id -> rank), or None; stragglers are reported here."""
        now = time.monotonic()
        before = {rank: pace.beats for rank, pace in self._elsewhere.items()}
        self._elsewhere = {pace.rank: pace for node in peers for pace in node.ranks}
        if before != {rank: pace.beats for rank, pace in self._elsewhere.items()}:
            self._heard = now
        pages = {rank: self._ranks[rank].page for rank in running.values()}
        if len(pages) == len(self._ranks):
            busy = {rank: pace.busy_seconds for rank, pace in self._elsewhere.items() if pace.busy_seconds is not None}
            slow = self._stragglers.look(pages, busy, now)
            if slow is not None:
                self._report(slow)
        return self._hangs.look(pages, now, heard=self._heard)

    def pace(self) -> NodePace | None:
        """Return how far this node's ranks are when it is time to tell the others, else None."""
        now = time.monotonic()
        if now - self._shared_at < SHARE_SECONDS:
            return None
        self._shared_at = now
        return NodePace(node=self._node, ranks=tuple(self._pace(process) for process in self._ranks.values()))

    def dump(self, running: Mapping[int, int], name: str, folder_file: Callable[[str, str], str]) -> dict[int, Stack]:
        """Return the stacks of the ranks that run, after putting each into an event and into a file."""
        ranks = {rank: (pid, self._ranks[rank].stack) for pid, rank in running.items()}
        stacks = dump_stacks(ranks)
        for rank, stack in sorted(stacks.items()):
            pulse = self._ranks[rank].page.pulse
            self._say(
                "stacks",
                rank=rank,
                node=self._node,
                step=pulse.step if pulse else None,
                phase=pulse.phase if pulse else None,
                source=stack.source,
                frames=[frame[-200:] for frame in stack.frames[:MAX_FRAMES]],
                problem="" if stack.source else stack.text,
                file=folder_file(f"{name}-rank{rank}.txt", stack.text) if stack.source else "",
            )
        return stacks

    def judge(self, hang: Hang, stacks: Mapping[int, Stack]) -> Outcome:
        """Return the outcome of a start that hung, after saying so in an event."""
        behind = self._behind(hang, stacks)
        positions: dict[int, dict[str, int | str]] = {
            rank: {"step": pulse.step, "phase": pulse.phase} for rank, pulse in sorted(hang.pulses.items())
        }
        for rank, pace in self._elsewhere.items():
            positions.setdefault(rank, {"step": pace.step, "phase": pace.phase})
        step = min(pulse.step for pulse in hang.pulses.values())
        self._say(
            "hang",
            step=step,
            node=self._node,
            behind=behind,
            silent_seconds=round(hang.silence, 1),
            limit_seconds=round(hang.limit, 1),
            positions=positions,
            waiting=[rank for rank, stack in sorted(stacks.items()) if stack.waits_for_peers],
        )
        at = positions[behind[0]] if behind else {"step": step, "phase": next(iter(hang.pulses.values())).phase}
        who = f"rank {', '.join(map(str, behind))}" if behind else "the training"
        reason = f"{who} hung after step {at['step']} ({at['phase']}): no progress for {hang.silence:.0f} s"
        first = behind[0] if behind else 0
        return Outcome(reason=reason, cause=JobCause.HUNG, retry=True, hang=True, rank=first, at=time.time())

    def _behind(self, hang: Hang, stacks: Mapping[int, Stack]) -> list[int]:
        """Return the ranks that keep the others: with fewer steps, or the only ones that are in no collective."""
        steps = {rank: pulse.step for rank, pulse in hang.pulses.items()}
        steps.update({rank: pace.step for rank, pace in self._elsewhere.items() if rank not in steps})
        fewest = sorted(rank for rank, step in steps.items() if step == min(steps.values()))
        if len(fewest) < len(steps):
            return fewest
        known = {rank: stack for rank, stack in stacks.items() if stack.source}
        busy = sorted(rank for rank, stack in known.items() if not stack.waits_for_peers)
        return busy if len(busy) < len(known) else []

    def _report(self, slow: Sequence[Straggler]) -> None:
        pages = [process.page for process in self._ranks.values()]
        step = min((pulse.step for page in pages if (pulse := page.pulse)), default=0)
        ranks = [
            {
                "rank": straggler.rank,
                "node": self._node,
                "ratio": round(straggler.ratio, 2),
                "busy_seconds": round(straggler.busy_seconds, 6),
                "others_seconds": round(straggler.others_seconds, 6),
                "cpu_share": round(straggler.cpu_share, 2),
            }
            for straggler in slow
        ]
        self._say("stragglers", step=step, window=WINDOW, ranks=ranks)

    def _pace(self, process: RankProcess) -> RankPace:
        pulse, busy = process.page.pulse, process.page.busy[-WINDOW:]
        median = None
        with contextlib.suppress(statistics.StatisticsError):  # it has told none yet
            median = statistics.median(busy)
        if pulse is None:
            return RankPace(rank=process.rank, step=0, phase="starting")
        beats = process.page.beats
        return RankPace(rank=process.rank, step=pulse.step, phase=pulse.phase, busy_seconds=median, beats=beats)
