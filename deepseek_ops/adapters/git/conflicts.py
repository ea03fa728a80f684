"""Texts that are merged with ``git merge-file``, and the places where that cannot be done."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from deepseek_ops.adapters.git.command import Git
from deepseek_ops.core.merges import ConflictHunk

CONTEXT = 3
"""Lines around a place that conflicts."""
_MARK = 61
"""Length of the markers that are parsed: lines of seven ``=`` are underlines of titles in many a file."""
_MOST_CONFLICTS = 127
"""git answers with the number of conflicts, up to this one; more is an error."""


def merged_text(
    work: Git, *, ours: bytes, base: bytes | None, theirs: bytes | None, mark: int = 7
) -> tuple[int, bytes]:
    """Return how many places conflict (more than 127: it is no text to merge), and the text with markers in them."""
    with tempfile.TemporaryDirectory(prefix="deepseek-ops-merge-") as folder:
        names = [Path(folder, name) for name in ("ours", "base", "theirs")]
        for place, text in zip(names, (ours, base, theirs), strict=True):
            place.write_bytes(text or b"")
        labels = [option for name in names for option in ("-L", name.name)]
        status, output, _ = work.attempt("merge-file", "-p", f"--marker-size={mark}", *labels, *map(str, names))
    return status, output


def hunks_of(work: Git, base: bytes | None, ours: bytes | None, theirs: bytes | None) -> tuple[ConflictHunk, ...]:
    """Return the places where both sides changed the same lines; none where a side is no text."""
    if ours is None or theirs is None:
        return ()
    status, output = merged_text(work, ours=ours, base=base, theirs=theirs, mark=_MARK)
    if not 0 < status <= _MOST_CONFLICTS:
        return ()
    return _parsed(output.decode(errors="replace").removesuffix("\n").split("\n"))


def _parsed(lines: Sequence[str]) -> tuple[ConflictHunk, ...]:
    """Return the hunks between markers; ``merged`` grows by what stands outside of them, and by our side."""
    found: list[ConflictHunk] = []
    merged: list[str] = []
    at = 0
    while at < len(lines):
        if not lines[at].startswith("<" * _MARK):
            merged.append(lines[at])
            at += 1
            continue
        middle = _next(lines, "=", at)
        end = _next(lines, ">", middle)
        ours, theirs = _lines(lines[at + 1 : middle]), _lines(lines[middle + 1 : end])
        after = _lines(_until_mark(lines[end + 1 : end + 1 + CONTEXT]))
        found.append(ConflictHunk(len(merged) + 1, _lines(merged[-CONTEXT:]), ours, theirs, after))
        merged += ours
        at = end + 1
    return tuple(found)


def _next(lines: Sequence[str], mark: str, start: int) -> int:
    return next((at for at in range(start, len(lines)) if lines[at].startswith(mark * _MARK)), len(lines))


def _until_mark(lines: Sequence[str]) -> Sequence[str]:
    return lines[: _next(lines, "<", 0)]


def _lines(lines: Sequence[str]) -> tuple[str, ...]:
    return tuple(line.removesuffix("\r") for line in lines)
