"""Two results beside each other, as lines for people: the answer first, then parts and metrics, then texts."""

from __future__ import annotations

from collections.abc import Iterator

from deepseek_ops.pipeline.lineage_deltas import Delta
from deepseek_ops.pipeline.lineage_diff import LineageDiff
from deepseek_ops.pipeline.lineage_moves import Move
from deepseek_ops.pipeline.lineage_text import plain

_MARKS = {True: "moved", False: "same", None: "unknown"}


def diff_text(diff: LineageDiff) -> str:
    """Return the comparison."""
    return "\n".join(plain(line) for line in _lines(diff))


def delta_line(delta: Delta) -> str:
    """Return one metric: values, difference, and its uncertainty or why there is none."""
    name = f"{delta.metric} ({delta.stage})" if delta.stage else delta.metric
    head = f"{name}: {delta.old:.6g} -> {delta.new:.6g}, {delta.delta:+.6g}"
    if delta.interval is None:
        return f"{head}; no interval: {delta.note}"
    low, high = delta.interval
    note = f"; {delta.note}" if delta.note else ""
    return f"{head}, 95 % interval {low:+.4g} to {high:+.4g} over {delta.items} paired items{note}"


def _lines(diff: LineageDiff) -> Iterator[str]:
    yield f"{diff.old.name} (run {diff.old.run or 'not known'}) -> {diff.new.name} (run {diff.new.run or 'not known'})"
    yield from (f"  {sentence}" for sentence in diff.conclusion)
    yield "parts:"
    for move in diff.moves:
        follows = f" (follows {move.follows})" if move.follows else ""
        yield f"  {_MARKS[move.moved]:<8}{move.part:<13}{move.summary}{follows}"
    yield "metrics:"
    yield from (f"  {delta_line(delta)}" for delta in diff.deltas)
    for move in diff.moves:
        yield from _texts(move)
    if diff.degraded:
        yield "not everybody answered:"
        yield from (f"  {problem}" for problem in diff.degraded)


def _texts(move: Move) -> Iterator[str]:
    if move.text:
        yield f"{move.part}:"
        yield from (f"  {line}" for line in move.text)
    if move.cut:
        yield f"  ({move.cut} more lines)"
