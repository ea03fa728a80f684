"""Why did quality move: what differs between two results beside how their metrics differ, and what may be concluded.

The conclusion is arithmetic, no opinion. One part that moved alone explains a difference beyond chance; several that
moved together are confounded, and the runs that would tell them apart are named; nothing that moved leaves chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pydantic import Field

from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.records import Record
from deepseek_ops.pipeline.lineage_deltas import Delta, metric_deltas
from deepseek_ops.pipeline.lineage_inputs import data_move, environment_move
from deepseek_ops.pipeline.lineage_moves import Move, code_move, config_move, plain_moves
from deepseek_ops.pipeline.lineage_sources import Sources
from deepseek_ops.pipeline.lineage_subject import Subject
from deepseek_ops.pipeline.lineage_targets import find_subject

ORDER = ("base", "data", "code", "config", "environment", "software", "hardware", "seed")
"""In which such moves usually weigh; moved parts are told in this order."""


@dataclass(eq=False)
class NothingToCompareError(PermanentError):
    """A run that left no manifest has no parts to compare."""

    target: str
    recorded: bool = False
    """Whether Git has a record of it: then it did train, and what it was planned from is in another store."""

    def __str__(self) -> str:
        if self.recorded:
            return (
                f"of {self.target!r} only its record in Git was found, which names no parts to compare; "
                "give the --store, --facts or --registry of its run."
            )
        return f"{self.target!r} planned no training: nothing to compare; `deepseek-ops why` tells what it did."


class Compared(Record):
    """One of the two results."""

    target: str
    found_by: str
    name: str = Field(description="Model and version, or the run.")
    run: str = ""
    commit: str


class LineageDiff(Record):
    """Two results beside each other."""

    old: Compared
    new: Compared
    moves: tuple[Move, ...]
    deltas: tuple[Delta, ...]
    conclusion: tuple[str, ...] = Field(description="Sentences: what moved, and what follows from it.")
    degraded: tuple[str, ...] = ()

    @property
    def moved(self) -> tuple[str, ...]:
        """Names of the parts that moved by themselves."""
        return tuple(move.part for move in self.moves if move.moved and not move.follows)


def compare(sources: Sources, old_target: str, new_target: str) -> LineageDiff:
    """Return what moved from one result to another, and how the metrics did.

    Raises UnknownTargetError, NothingToCompareError, VersionNotFoundError, IntegrityError.
    """
    old, new = find_subject(sources, old_target), find_subject(sources, new_target)
    sides = _compared(old_target, old), _compared(new_target, new)
    code = code_move(sources, old, new)
    moves = [*code, config_move(sources, old, new), *plain_moves(old, new)]
    moves.append(data_move(sources, old, new, code_moved=bool(code[0].moved)))
    moves.append(environment_move(sources, old, new))
    moves.sort(key=lambda move: ORDER.index(move.part))
    deltas = metric_deltas(sources, old, new)
    return LineageDiff(
        old=sides[0],
        new=sides[1],
        moves=tuple(moves),
        deltas=tuple(deltas),
        conclusion=tuple(conclude(moves, deltas, new=sides[1].name)),
        degraded=tuple(sources.degraded),
    )


def conclude(moves: Sequence[Move], deltas: Sequence[Delta], *, new: str) -> list[str]:
    """Return what follows: the metrics say whether there is anything to explain, the parts what can explain it."""
    moved = [move.part for move in moves if move.moved and not move.follows]
    unknown = [move.part for move in moves if move.moved is None]
    said = [_quality(deltas)]
    said += [f"{move.part} moved because {move.follows} did: they count as one." for move in moves if move.follows]
    if not moved:
        said.append("Nothing that is recorded moved: a difference is what training and measuring vary by themselves.")
    elif moved == ["seed"]:
        said.append("Only the seed moved: the difference is the spread of this training, not a cause.")
    elif len(moved) == 1:
        text = f"Only {moved[0]} moved: it alone explains a difference beyond chance"
        said.append(f"{text}; chance here is that of the items, repeat with other seeds to see that of training.")
    else:
        told = f"{len(moved)} parts moved together ({', '.join(moved)}): their effects are confounded."
        runs = "; ".join(f"the old run with only {part} of {new}" for part in moved)
        said.append(f"{told} To tell them apart, train {runs}.")
    if unknown:
        said.append(f"Of {', '.join(unknown)} it cannot be said any more whether it moved.")
    return said


def _quality(deltas: Sequence[Delta]) -> str:
    known = [delta for delta in deltas if delta.interval is not None]
    if not deltas:
        return "No metric was measured for both."
    if not known:
        return f"Whether quality moved beyond chance is not known: {deltas[0].note or 'no items were paired'}."
    clear = [delta for delta in known if delta.beyond_chance]
    if not clear:
        return f"No metric moved beyond chance ({len(known)} with an interval): there is nothing to explain."
    words = ", ".join(f"{delta.metric} ({delta.stage}) {delta.verdict}" for delta in clear)
    return f"Beyond chance: {words}."


def _compared(target: str, subject: Subject) -> Compared:
    if subject.manifest is None:
        raise NothingToCompareError(target, recorded=subject.record is not None)
    return Compared(
        target=target,
        found_by=subject.found_by,
        name=subject.name,
        run=subject.run,
        commit=subject.manifest.source.commit,
    )
