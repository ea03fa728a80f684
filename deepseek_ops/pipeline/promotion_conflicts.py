"""What of a merge is left to people: dataset pointers are merged by their datasets, the rest is told place by place."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from deepseek_ops.core.merges import ConflictHunk, MergeConflict
from deepseek_ops.data.pointer_merge import PointerMerge
from deepseek_ops.pipeline.lineage_text import plain

MergePointer = Callable[[str, str, str], PointerMerge]
"""Base, ours and theirs of a dataset pointer -> their merge."""
MAX_LINES = 20
"""Lines of one side of a place, or of a file's diff, that are shown."""
MAX_PLACES = 20
"""Places of a file that are shown."""
_WIDTH = 200
_POINTER = re.compile(r"data/[^/]+\.dataset\.yaml")


@dataclass(frozen=True, slots=True)
class Unmerged:
    """A file that people have to merge."""

    path: str
    problem: str
    base: str
    ours: str
    theirs: str
    hunks: tuple[ConflictHunk, ...] = ()


def resolve_conflicts(
    conflicts: Sequence[MergeConflict], merge_pointer: MergePointer
) -> tuple[dict[str, bytes], list[Unmerged]]:
    """Return path -> contents of what could be merged after all, and what could not."""
    files: dict[str, bytes] = {}
    left: list[Unmerged] = []
    for one in conflicts:
        problem = _what_happened(one)
        if _POINTER.fullmatch(one.path) and one.ours is not None and one.theirs is not None:
            merged = merge_pointer(_text(one.base), _text(one.ours), _text(one.theirs))
            if not merged.problem:
                files[one.path] = merged.text.encode()
                continue
            problem = merged.problem
        left.append(Unmerged(one.path, problem, _text(one.base), _text(one.ours), _text(one.theirs), one.hunks))
    return files, left


def conflict_lines(one: Unmerged, *, ours: str, theirs: str) -> Iterator[str]:
    """Yield a conflict for people: each place with the lines around it, or what the side that kept the file changed.

    ``ours`` and ``theirs`` are the names of the two sides.
    """
    yield plain(f"{one.path}: {one.problem}")
    for hunk in one.hunks[:MAX_PLACES]:
        yield f"  line {hunk.line}:"
        yield from _shown(hunk.before)
        yield f"    <<<<<<< {ours}"
        yield from _shown(hunk.ours)
        yield "    ======="
        yield from _shown(hunk.theirs)
        yield f"    >>>>>>> {theirs}"
        yield from _shown(hunk.after)
    if len(one.hunks) > MAX_PLACES:
        yield f"  ... and {len(one.hunks) - MAX_PLACES} more places"
    if not one.hunks and one.base and bool(one.ours) != bool(one.theirs):
        name, text = (ours, one.ours) if one.ours else (theirs, one.theirs)
        changed = difflib.unified_diff(one.base.splitlines(), text.splitlines(), n=3, lineterm="")
        yield f"  {name} changed:"
        yield from _shown(list(changed)[2:])


def _shown(lines: Sequence[str]) -> Iterator[str]:
    for line in lines[:MAX_LINES]:
        text = plain(line.expandtabs(4))
        yield f"      {text[:_WIDTH]}{' ...' if len(text) > _WIDTH else ''}".rstrip()
    if len(lines) > MAX_LINES:
        yield f"      ... {len(lines) - MAX_LINES} more lines"


def _what_happened(one: MergeConflict) -> str:
    if one.ours is None and one.theirs is None:
        return "both sides changed it, and it is no text"
    if one.ours is None or one.theirs is None:
        return "one side changed it, the other deleted it, renamed it or made it no text"
    if one.base is None:
        return "both sides added it"
    return "both sides changed the same lines" if one.hunks else "both sides changed its mode or its name"


def _text(data: bytes | None) -> str:
    return data.decode(errors="replace") if data is not None else ""
