"""What a push does to the runs of earlier pushes to its branch: wait for them, stop them, or run beside them.

Each branch of a repository has a lane: one fact that holds the newest runs of pushes, changed by compare-and-swap
only, so that of two runs that enter at once both see the other. Everything else here is a pure function of the lane,
so a task that is tried again, or two that race, come to the same lane. That a run has ended is asked of Airflow by
whoever waits for it, and no run has to say it of itself: no kill can leave a branch blocked. A turn is forgotten only
when its run has ended: however long a lane is, every run that goes on finds its own.

Only runs that a push started have a turn. What people, schedules and data start neither waits nor is stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Literal

from deepseek_ops.core.digests import digest_of
from deepseek_ops.core.errors import FactConflictError, ObjectExistsError
from deepseek_ops.core.ports import Facts
from deepseek_ops.core.records import CommitId, GitRef, Record

LANE = "lane"
"""Kind of the facts that hold lanes."""
SUPERSEDED = "superseded by"
"""How the reason of a job that was stopped for this begins: whoever still needs the job submits it again."""
Policy = Literal["queue", "supersede", "parallel"]

KEPT = 64
"""Turns in a lane above which the oldest of ended runs are forgotten."""
_ASKED = 16
"""Runs of a long lane that Airflow is asked about in one look, beside those that are waited for."""
_TRIES = 50


class Turn(Record):
    """One run of a push, in the lane of its branch."""

    run: str
    commit: CommitId
    order: str = ""
    """ISO 8601, UTC, of equal length: which push is newer. A run that is slow to start is not newer for it."""
    policy: Policy = "parallel"
    state: Literal["waiting", "active", "superseded", "ended"] = "waiting"
    by: str = ""
    """Commit that took its place."""

    @property
    def place(self) -> tuple[str, str]:
        """Sort key in the lane."""
        return self.order, self.run


class Lane(Record):
    """The runs of the pushes to one branch that go on, and the newest of those that have ended, oldest first."""

    turns: tuple[Turn, ...] = ()

    def turn(self, run: str) -> Turn | None:
        """Return the run's turn, or None when it has none."""
        return next((turn for turn in self.turns if turn.run == run), None)

    def ahead_of(self, run: str) -> tuple[Turn, ...]:
        """Return the turns a queued run waits for: earlier ones that go on, for all that is known here."""
        mine = self.turn(run)
        if mine is None or mine.policy != "queue" or mine.state != "waiting":
            return ()
        return tuple(one for one in self.turns if one.place < mine.place and one.state in ("waiting", "active"))

    @property
    def surplus(self) -> tuple[Turn, ...]:
        """The oldest turns, as many as are more than are kept of ended runs."""
        return self.turns[: max(0, len(self.turns) - KEPT)]


def lane_key(ref: GitRef) -> str:
    """Return the key of a branch's lane."""
    return f"{digest_of(ref.repository.encode())[:12]}/{ref.name}"


def entered(lane: Lane, turn: Turn) -> Lane:
    """Return the lane with the turn in it; a run that is there already changes nothing.

    A newer push with ``supersede`` takes the place of every earlier turn, whichever of the two enters first.
    """
    if lane.turn(turn.run) is not None:
        return lane
    turns = sorted((*lane.turns, turn), key=lambda one: one.place)
    return Lane(turns=tuple(_settled(one, turns) for one in turns))


def advanced(lane: Lane, run: str, *, ended: Collection[str]) -> Lane:
    """Return the lane with what has ended marked as such, and the run active if then nothing is ahead of it.

    Of a lane that is too long, ended runs are left out: the oldest, and never ``run`` itself.
    """
    live, old = ("waiting", "active"), {turn.run for turn in lane.surplus if turn.run in ended and turn.run != run}
    turns = [
        turn.evolve(state="ended") if turn.run in ended and turn.state in live else turn
        for turn in lane.turns
        if turn.run not in old
    ]
    marked = Lane(turns=tuple(turns))
    mine = marked.turn(run)
    if mine is None or mine.state != "waiting" or marked.ahead_of(run):
        return marked
    return Lane(turns=tuple(turn.evolve(state="active") if turn.run == run else turn for turn in marked.turns))


def enter(facts: Facts, key: str, turn: Turn) -> Lane:
    """Put a run into its lane and return the lane. Raises FactConflictError when too many others do so at once."""
    return _change(facts, key, lambda lane: entered(lane, turn))


def advance(facts: Facts, key: str, run: str, *, has_ended: Callable[[str], bool]) -> Lane:
    """Let the run go on if it may, and return the lane. ``has_ended`` asks Airflow about the runs ahead."""
    lane = lane_of(facts, key)
    asked = dict.fromkeys(turn.run for turn in (*lane.ahead_of(run), *lane.surplus[:_ASKED]))
    ended = {one for one in asked if has_ended(one)}
    return _change(facts, key, lambda lane: advanced(lane, run, ended=ended))


def lane_of(facts: Facts, key: str) -> Lane:
    """Return the lane as it is; an empty one before the first push."""
    fact = facts.get(LANE, key)
    return Lane() if fact is None else Lane.load(fact.body)


def superseded_reason(facts: Facts, key: str, run: str) -> str:
    """Return ``superseded by <commit>``, or an empty text while the run's turn is its own, or it has none."""
    turn = lane_of(facts, key).turn(run)
    return f"{SUPERSEDED} {turn.by}" if turn is not None and turn.state == "superseded" else ""


def explain_turn(lane: Lane, run: str) -> str:
    """Return what became of the run's turn, as a line for people."""
    mine = lane.turn(run)
    if mine is None:
        return "no push: neither waits nor is waited for"
    if mine.state == "superseded":
        return f"{SUPERSEDED} {mine.by}: a newer push to the branch runs in its place"
    stopped = [turn.run for turn in lane.turns if turn.by == mine.commit and turn.state == "superseded"]
    if stopped:
        return f"supersede: takes the place of {', '.join(stopped)}"
    if mine.state == "waiting":
        return f"queue: waits for {', '.join(turn.run for turn in lane.ahead_of(run)) or 'nobody'}"
    return f"{mine.policy}: goes on"


def _settled(turn: Turn, turns: Iterable[Turn]) -> Turn:
    newer = [one for one in turns if one.place > turn.place and one.policy == "supersede"]
    if turn.state in ("superseded", "ended") or not newer:
        return turn
    return turn.evolve(state="superseded", by=newer[-1].commit)


def _change(facts: Facts, key: str, change: Callable[[Lane], Lane]) -> Lane:
    for _ in range(_TRIES):
        fact = facts.get(LANE, key)
        before = Lane() if fact is None else Lane.load(fact.body)
        after = change(before)
        if after == before:
            return after
        try:
            if fact is None:
                facts.insert(LANE, key, after.dump())
            else:
                facts.update(fact, after.dump())
        except (ObjectExistsError, FactConflictError):
            continue
        return after
    raise FactConflictError(LANE, key)
