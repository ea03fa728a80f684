"""One run of the Git trigger: which refs moved, which of them rest, what counts as announced, where that is kept."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepseek_ops.airflow.triggers.announcements import Announcements, seen_in
from deepseek_ops.airflow.triggers.watching import Memory, pause_after
from deepseek_ops.core.errors import RefNotFoundError

if TYPE_CHECKING:
    from deepseek_ops.adapters.git import GitRepository
    from deepseek_ops.airflow.triggers.git_stream import RefSnapshot
    from deepseek_ops.airflow.triggers.wanted import Wish
    from deepseek_ops.core.records import GitRef

LONGEST_REST = 10.0
"""A ref that never rests is announced after this many times its debounce, counted from its first move."""
PLACE = "repository"
"""Entry of the memory that holds the URL: no ref is called that."""
EVERY_START = "start"
"""Epoch of a watcher without a memory that announces the same refs at every start: they are the same moves."""
WITNESSES = 3

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Moving:
    """A ref on its way to rest, or one that could not be looked at."""

    commit: str
    first: float
    since: float
    wish: Wish | None = None
    failures: int = 0
    not_before: float = 0.0


class GitWatch:
    """What one watcher knows. ``seen`` maps each ref to the commit that counts as announced."""

    def __init__(
        self,
        memory: Callable[[], Memory | None],
        *,
        after: Mapping[str, str] | None,
        announce: bool,
        interval: float,
        claimed: bool = False,
    ) -> None:
        self.seen: dict[str, str] = {}
        self._open = memory
        self._after = after
        self._announce = announce
        self._interval = interval
        self._announcements = Announcements(claimed=claimed)
        self._memory: Memory | None = None
        self._stored: dict[str, str] | None = None
        self._moving: dict[str, _Moving] = {}
        self._refs: Mapping[str, str] | None = None
        self._url = ""

    def idle(self, snapshot: RefSnapshot) -> bool:
        """Return whether this snapshot can bring nothing: no ref moved, none is awaited, all is remembered."""
        nothing = not self._moving and not self._announcements.overdue(snapshot.at) and self._kept() == self._stored
        same = snapshot.refs is self._refs and nothing
        self._refs = snapshot.refs
        return same

    async def begun(self, remote: GitRepository, there: Mapping[str, str]) -> bool:
        """Return whether it is known what was announced; finds out at the first snapshot."""
        if self._stored is not None:
            return True
        self._url = remote.url
        try:
            self._memory = self._open()
            known = await self._memory.load() if self._memory is not None else None
            if known is not None and not await self._same_repository(remote, known, there):
                log.warning("%s is another repository than the one watched before: beginning afresh", remote.url)
                known = None
            first = known is None
            if known is None:
                known = self._first(there)
                log.info("first look at %s: %d refs, %d count as announced", remote.url, len(there), len(known))
            self.seen = seen_in(known)
            every_start = self._memory is None and (self._announce or self._after is not None)
            unnamed = self._announcements.begin(known, epoch=EVERY_START if every_start else "")
            if self._memory is not None and (first or unnamed):
                known = self._kept()
                await self._memory.save(known)
        except Exception:
            # Without what was announced before, nothing can be announced now.
            log.warning("could not read the watermark; trying again with the next poll", exc_info=True)
            return False
        self._stored = dict(known)
        return True

    async def lost(
        self,
        there: Mapping[str, str],
        now: float,
        unclaimed: Callable[[Sequence[GitRef]], Awaitable[list[GitRef]]],
    ) -> list[GitRef]:
        """Return the announcements that no run has taken (``unclaimed``) for long, to be made again as they were."""
        return await self._announcements.lost(there, self.seen, now, unclaimed)

    def moved(self, url: str, there: Mapping[str, str]) -> list[GitRef]:
        """Return the refs that are new or elsewhere. A deleted one is forgotten: if it comes back, it is new."""
        self.seen = {name: commit for name, commit in self.seen.items() if name in there}
        found = self._announcements.moves(url, there, self.seen)
        names = {ref.name for ref in found}
        self._moving = {name: moving for name, moving in self._moving.items() if name in names}
        return found

    def due(self, refs: Sequence[GitRef], now: float) -> list[GitRef]:
        """Return those that are to be looked at: not the ones whose last look failed a moment ago."""
        for ref in refs:
            moving = self._moving.get(ref.name)
            if moving is None:
                self._moving[ref.name] = _Moving(ref.commit, first=now, since=now)
            elif moving.commit != ref.commit:
                self._moving[ref.name] = _Moving(ref.commit, first=moving.first, since=now)
        return [ref for ref in refs if self._moving[ref.name].not_before <= now]

    def wish(self, ref: GitRef) -> Wish | None:
        """Return what was found out about this commit of the ref before."""
        return self._moving[ref.name].wish

    def failed(self, ref: GitRef, now: float) -> None:
        """Look at the ref again later, each time after a longer pause."""
        moving = self._moving[ref.name]
        moving.failures += 1
        moving.not_before = now + pause_after(moving.failures, self._interval)

    def rests(self, ref: GitRef, wish: Wish, debounce: float, now: float) -> float | None:
        """Return None when the ref can be dealt with now, else the moment of the next look at it."""
        moving = self._moving[ref.name]
        moving.wish = wish
        if not wish.wanted or debounce <= 0:
            return None
        moment = min(moving.since + debounce, moving.first + LONGEST_REST * debounce)
        return None if now >= moment else moment

    def settle(self, ref: GitRef, now: float, *, told: GitRef | None) -> None:
        """Count the ref's commit as dealt with; ``told`` is what anybody hears of it, None for nothing."""
        self.seen[ref.name] = ref.commit
        self._moving.pop(ref.name, None)
        self._announcements.settle(ref, now, told=told)

    async def remember(self) -> None:
        """Store what counts as announced, if that is something else than what is stored."""
        kept = self._kept()
        if self._memory is None or (kept != self._stored and await self._memory.save_or_log(kept)):
            self._stored = kept

    def _kept(self) -> dict[str, str]:
        return {**self._announcements.entries(self.seen), PLACE: self._url}

    def _first(self, there: Mapping[str, str]) -> dict[str, str]:
        if self._after is not None:
            return dict(self._after)
        return {} if self._announce else dict(there)

    async def _same_repository(self, remote: GitRepository, known: Mapping[str, str], there: Mapping[str, str]) -> bool:
        """Return whether a watermark belongs to this repository, which may have been renamed or moved since."""
        if known.get(PLACE, remote.url) == remote.url:
            return True
        refs = seen_in(known)
        if any(there.get(name) == commit for name, commit in refs.items()):
            return True
        for commit in sorted(set(refs.values()))[:WITNESSES]:
            try:
                await asyncio.to_thread(remote.describe, commit)
            except RefNotFoundError:
                continue
            return True
        return False
