"""What a merge of two commits makes, and what it leaves to people."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ConflictHunk:
    """One place of a file where both sides changed the same lines; lines have no line ends."""

    line: int
    """Where it begins in the merged file, from 1, with our side taken in the places before."""
    before: tuple[str, ...]
    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    after: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MergeConflict:
    """A file that both sides of a merge changed; a side without the file is None, as is one that is no text."""

    path: str
    base: bytes | None
    ours: bytes | None
    theirs: bytes | None
    hunks: tuple[ConflictHunk, ...] = ()
    """Every place that conflicts, in order; none where a side is None."""


@dataclass(frozen=True, slots=True)
class MergedTree:
    """The tree a merge makes. While ``conflicts`` are not empty, the tree holds conflict markers in those files."""

    tree: str
    base: str
    """The best common ancestor."""
    conflicts: tuple[MergeConflict, ...] = ()
    merged: bool = False
    """Whether ``ours`` contains ``theirs`` already, so that there is nothing to merge."""
