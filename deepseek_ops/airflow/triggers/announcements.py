"""What a watcher has announced: what each move of a ref is called, and which of them no run is known to have taken.

A ref may come back to a commit, so a commit is no name for a push. A move is called ``<epoch>.<number>``: the epoch is
drawn once and stored before anything is announced, and the number counts the moves of that ref since. Both are part of
the memory that says where each ref was: a watcher that is killed before it stores a move finds the same move again, and
calls it the same. A deleted ref keeps its number, for the day it comes back.

A move that no run takes is announced again as it was, under the same name: it is lost where a DAG was paused a moment
ago, or where Airflow was just making a run of another event. It is forgotten when a run has taken it, when a newer move
of the ref is announced, or when the ref is deleted, and by nothing else.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepseek_ops.core.records import GitRef

EPOCH = "epoch"
"""Entry of the memory; as of those below, no ref is called that."""
FLOOR = "floor"
"""Entry with the largest number of the deleted refs that are forgotten: a ref without a number goes on from it."""
UNTAKEN = "untaken "
"""How an entry with a move that no run has taken begins; the name of the ref follows."""
OLD_ANNOUNCED = "announced"
"""Entry in which older versions kept their newest announcements, as JSON; those have no names."""
GONE_KEPT = 2000
"""Deleted refs whose numbers are kept; of more, the smallest numbers are forgotten first."""
AGAIN_SECONDS = 120.0
"""How long after its announcement a push that no run has taken is announced again; four times as long each time."""
AGAIN_TIMES = 6

_REF = "refs/"
_NONE = "-"

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Untaken:
    """A move that was announced, until it is known that a run has taken it."""

    ref: GitRef
    again_at: float
    """When to ask whether a run has, by ``time.monotonic``."""
    times: int = 0


class Announcements:
    """The moves of one watcher. Without ``claimed`` nobody says what runs take: moves have no names then."""

    def __init__(self, *, claimed: bool) -> None:
        self._claimed = claimed
        self._epoch = ""
        self._floor = 0
        self._numbers: dict[str, int] = {}
        self._untaken: dict[str, _Untaken] = {}
        """The newest announced move of each ref; the watcher before this one may have made it."""

    def begin(self, known: Mapping[str, str], *, epoch: str = "") -> bool:
        """Take up what a memory holds, and return whether it must be stored before anything is announced.

        ``epoch`` is that of a watcher without a memory which announces the same refs at every start.
        """
        if not self._claimed:
            return False
        self._epoch = known.get(EPOCH, "") or epoch or secrets.token_hex(4)
        self._floor = int(known.get(FLOOR, "0"))
        self._numbers = {}
        for name, value in known.items():
            number = value.partition(" ")[2] if name.startswith(_REF) else ""
            if number:
                self._numbers[name] = int(number)
        self._untaken = {ref.name: _Untaken(ref, again_at=float("-inf")) for ref in _untaken_of(known)}
        return EPOCH not in known

    def moves(self, url: str, there: Mapping[str, str], seen: Mapping[str, str]) -> list[GitRef]:
        """Return the refs that are elsewhere than they were ``seen``."""
        from deepseek_ops.core.records import GitRef

        self._untaken = {name: one for name, one in self._untaken.items() if name in there}
        return [
            GitRef(repository=url, name=name, commit=commit, previous=seen.get(name), move=self._next(name))
            for name, commit in there.items()
            if seen.get(name) != commit
        ]

    def settle(self, ref: GitRef, now: float, *, told: GitRef | None) -> None:
        """Count a move as dealt with; ``told`` is what was announced of it, None for nothing."""
        if not self._claimed:
            return
        self._numbers[ref.name] = self._numbers.get(ref.name, self._floor) + 1
        if told is not None:
            self._untaken[ref.name] = _Untaken(told, again_at=now + AGAIN_SECONDS)

    def overdue(self, now: float) -> bool:
        """Return whether it is time to ask for some move whether a run has taken it."""
        return any(one.again_at <= now for one in self._untaken.values())

    async def lost(
        self,
        there: Mapping[str, str],
        seen: Mapping[str, str],
        now: float,
        unclaimed: Callable[[Sequence[GitRef]], Awaitable[list[GitRef]]],
    ) -> list[GitRef]:
        """Return the moves that no run has taken (``unclaimed``) for long, and forget those that one has.

        A ref that is just moving is waited for: what it moves to may be announced in their place.
        """
        due = [one for one in self._untaken.values() if one.again_at <= now]
        asked = [one for one in due if there.get(one.ref.name, "") == seen.get(one.ref.name)]
        if not asked:
            return []
        try:
            left = await unclaimed([one.ref for one in asked])
        except Exception as error:  # noqa: BLE001  (facts that are away must not keep new pushes back)
            log.warning("cannot tell yet which pushes were taken: %s", error)
            return []
        return [one.ref for one in asked if self._is_told_again(one, now, taken=one.ref not in left)]

    def _is_told_again(self, one: _Untaken, now: float, *, taken: bool) -> bool:
        if taken:
            del self._untaken[one.ref.name]
            return False
        one.again_at = now + AGAIN_SECONDS * 4**one.times if one.times < AGAIN_TIMES else float("inf")
        one.times += 1
        if one.times > AGAIN_TIMES:
            return False  # the next watcher asks once more
        log.info("%s at %s was taken by no run: announcing it again", one.ref.short, one.ref.commit[:12])
        return True

    def entries(self, seen: Mapping[str, str]) -> dict[str, str]:
        """Return what the memory is to hold: where each ref was ``seen``, and all that is to be taken up again."""
        if not self._claimed:
            return dict(seen)
        self._forget_gone(seen)
        kept = {EPOCH: self._epoch}
        if self._floor:
            kept[FLOOR] = str(self._floor)
        kept.update(seen)
        for name, number in self._numbers.items():
            kept[name] = f"{seen.get(name, _NONE)} {number}"
        for name, one in self._untaken.items():
            ref = one.ref
            kept[UNTAKEN + name] = f"{ref.commit} {ref.previous or _NONE} {ref.move or _NONE} {ref.repository}"
        return kept

    def _next(self, name: str) -> str | None:
        return f"{self._epoch}.{self._numbers.get(name, self._floor) + 1}" if self._claimed else None

    def _forget_gone(self, seen: Mapping[str, str]) -> None:
        gone = [(number, name) for name, number in self._numbers.items() if name not in seen]
        for number, name in sorted(gone)[: max(0, len(gone) - GONE_KEPT)]:
            self._floor = max(self._floor, number)
            del self._numbers[name]


def seen_in(known: Mapping[str, str]) -> dict[str, str]:
    """Return ref -> commit that counts as announced, of a memory's entries."""
    found = {name: value.partition(" ")[0] for name, value in known.items() if name.startswith(_REF)}
    return {name: commit for name, commit in found.items() if commit != _NONE}


def _untaken_of(known: Mapping[str, str]) -> list[GitRef]:
    """Return the moves that a memory's entries hold."""
    from deepseek_ops.core.records import GitRef

    found = []
    if OLD_ANNOUNCED in known:
        url, *moves = json.loads(known[OLD_ANNOUNCED])
        found += [GitRef(repository=url, name=name, commit=at, previous=old or None) for name, at, old in moves]
    for entry, value in known.items():
        if entry.startswith(UNTAKEN):
            commit, *rest, url = value.split(" ", 3)
            previous, move = (None if one == _NONE else one for one in rest)
            name = entry.removeprefix(UNTAKEN)
            found.append(GitRef(repository=url, name=name, commit=commit, previous=previous, move=move))
    return found
