"""Lineage and comparisons as HTML: the answer first, each link of the chain below it, texts last."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import JsonValue

from deepseek_ops.pipeline.lineage_deltas import Delta
from deepseek_ops.pipeline.lineage_diff import LineageDiff
from deepseek_ops.pipeline.lineage_moves import Move
from deepseek_ops.pipeline.lineage_records import Lineage, Link
from deepseek_ops.pipeline.lineage_text import shown
from deepseek_ops.web.frames import LINEAGE
from deepseek_ops.web.markup import Child, Html, address, el, table

_MARKS = {True: ("moved", "changed"), False: ("same", ""), None: ("unknown", "problem")}
_SKIPPED = ("stages", "formats", "aliases", "champion", "rollouts", "audit")
"""Details that have a table of their own, or are left to the JSON."""


def start_page(base: str, versions: Iterable[tuple[str, str]]) -> Html:
    """Return the page that asks what to explain or compare, with the known versions."""
    rows = [_known(base, name, version) for name, version in versions]
    why = el(
        "form",
        _field("Model, model@version, run, tag or commit", "target"),
        el("button", "Why is it what it is?"),
        action=address(base, "why"),
        class_="filter",
    )
    compared = el(
        "form",
        _field("Old", "old"),
        _field("New", "new"),
        el("button", "What moved?"),
        action=address(base, "diff"),
        class_="filter",
    )
    known = (
        table(f"{len(rows)} registered versions", ("Version", ""), rows) if rows else el("p", "No version is known.")
    )
    return LINEAGE.page(base, "Lineage", why, compared, known)


def why_page(base: str, lineage: Lineage) -> Html:
    """Return the chain of one result, the models it was trained on below it."""
    title = f"{lineage.model or lineage.target} {lineage.version}".strip()
    return LINEAGE.page(base, title, _chain(lineage), _degraded(lineage.degraded))


def diff_page(base: str, diff: LineageDiff) -> Html:
    """Return what moved between two results, what follows, and how the metrics differ."""
    lead = el(
        "p",
        el("a", diff.old.name, href=address(base, "why", target=diff.old.target)),
        " to ",
        el("a", diff.new.name, href=address(base, "why", target=diff.new.target)),
        class_="lead",
    )
    moves: list[list[Child]] = [
        [
            el("strong", _MARKS[move.moved][0], class_=_MARKS[move.moved][1] or None),
            move.part,
            [move.summary, f" (follows {move.follows})" if move.follows else ""],
        ]
        for move in diff.moves
    ]
    return LINEAGE.page(
        base,
        "Why did quality move?",
        lead,
        el("ul", [el("li", sentence) for sentence in diff.conclusion]),
        table("Parts", ("", "Part", "What"), moves),
        el("h2", "Metrics"),
        _deltas(diff.deltas),
        [_move_text(move) for move in diff.moves],
        _degraded(diff.degraded),
    )


def problem_page(base: str, status: int, problem: str) -> Html:
    """Return what went wrong, and nothing else."""
    return LINEAGE.page(base, f"Error {status}", el("p", problem, class_="problem", role="alert"))


def _known(base: str, name: str, version: str) -> list[Child]:
    this = f"{name}@{version}"
    compared = address(base, "diff", old=f"{name}@champion", new=this)
    why = el("a", f"{name} {version}", href=address(base, "why", target=this))
    return [why, el("a", "compare with the champion", href=compared)]


def _field(label: str, name: str) -> Html:
    return el("label", label, el("input", name=name, required=True, size=34))


def _chain(lineage: Lineage) -> list[Child]:
    found = f"{lineage.found_by}" + (f", run {lineage.run}" if lineage.run else "")
    parts: list[Child] = [el("p", found, class_="lead")]
    parts += [_link(link) for link in lineage.links]
    if lineage.base is not None:
        parts += [
            el("h2", f"Trained on top of {lineage.base.model} {lineage.base.version}"),
            _chain(lineage.base),
        ]
    return parts


def _link(link: Link) -> Child:
    rows: list[tuple[str, Child]] = []
    rows += [("digest", el("code", link.digest))] if link.digest else []
    rows += [("stored", el("code", link.stored))] if link.stored else []
    rows += [
        (name.replace("_", " "), shown(value))
        for name, value in link.details.items()
        if name not in _SKIPPED and value not in (None, "", [], {})
    ]
    return [
        el("h2", link.part.capitalize()),
        el("p", link.summary),
        el("dl", [[el("dt", name), el("dd", value)] for name, value in rows], class_="facts") if rows else None,
        _tables(link),
        el("ul", [el("li", f"Not found: {problem}", class_="problem") for problem in link.missing])
        if link.missing
        else None,
    ]


def _tables(link: Link) -> Child:
    gates = _objects(link.details.get("stages"))
    if gates:
        rows: list[list[Child]] = [
            [str(one["stage"]), str(one["verdict"]), str(one["reason"]), _champion(one)] for one in gates
        ]
        return table("Gates", ("Stage", "Verdict", "Why", "Held against"), rows)
    forms = _objects(link.details.get("formats"))
    if forms:
        rows = [
            [str(one["format"]), str(one["status"]), shown(one["parity"]), el("code", shown(one["digest"]))]
            for one in forms
        ]
        return table("Exports", ("Format", "Status", "Parity", "Digest"), rows)
    moves = _objects(link.details.get("aliases"))
    if moves:
        rows = [
            [str(m["alias"]), str(m["at"]), str(m["until"] or "now"), str(m["actor"]), str(m["reason"])] for m in moves
        ]
        return table("Names it had", ("Alias", "Since", "Until", "By", "Why"), rows)
    events = _objects(link.details.get("audit"))
    if events:
        rows = [[str(e["at"]), str(e["actor"]), str(e["action"]), shown(e["details"])] for e in events]
        return table("Audit log", ("At", "Who", "Did", "Details"), rows)
    return None


def _champion(gate: dict[str, JsonValue]) -> Child:
    if not gate.get("champion"):
        return "no champion"
    return f"{gate['champion']}: {shown(gate['delta'])} ({shown(gate['interval'])})"


def _deltas(deltas: Iterable[Delta]) -> Html:
    rows: list[list[Child]] = [
        [
            f"{one.metric} ({one.stage})" if one.stage else one.metric,
            f"{one.old:.6g}",
            f"{one.new:.6g}",
            f"{one.delta:+.6g}",
            f"{one.interval[0]:+.4g} to {one.interval[1]:+.4g}" if one.interval else "none",
            one.note or f"{one.items} paired items",
        ]
        for one in deltas
    ]
    if not rows:
        return el("p", "No metric was measured for both.")
    heads = ("Metric", "Old", "New", "Difference", "95 % interval", "Over")
    return table(f"{len(rows)} metrics", heads, rows, numbers=(1, 2, 3, 4))


def _move_text(move: Move) -> Child:
    if not move.text:
        return None
    lines: list[Child] = [el("span", f"{line}\n", class_=_style(line)) for line in move.text]
    cut = el("p", f"{move.cut} more lines are not shown.") if move.cut else None
    return [el("h2", f"{move.part.capitalize()}, as text"), el("pre", lines), cut]


def _style(line: str) -> str | None:
    return {"+": "added", "-": "removed"}.get(line[:1])


def _degraded(problems: Iterable[str]) -> Child:
    lines = [el("li", problem) for problem in problems]
    return [el("h2", "Not everybody answered"), el("ul", lines)] if lines else None


def _objects(value: JsonValue) -> list[dict[str, JsonValue]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
