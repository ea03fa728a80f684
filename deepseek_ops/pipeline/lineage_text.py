"""Lineage as lines for people. Control characters are escaped: messages and reasons come from outside."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from pydantic import JsonValue

from deepseek_ops.pipeline.lineage_records import Lineage, Link

_WIDTH = 16
_INDENT = " " * (_WIDTH + 2)
_SHOWN = {
    "code": ("repository", "author", "date", "tree", "found_by", "found_in", "reached_by", "files_digest"),
    "data": ("splits", "prepared_by", "prepare_code", "raw", "checks"),
    "environment": ("image", "lock", "lock_digest", "resolved"),
    "base": ("metrics",),
    "hyperparameters": ("values", "overrides"),
    "training": (),
    "gates": (),
    "exports": (),
    "release": ("commit",),
    "rollout": ("endpoint",),
    "cost": ("usd_by_label",),
    "version": ("manifest", "also_named"),
}
"""Details that the text shows; the JSON has all."""


def lineage_text(lineage: Lineage) -> str:
    """Return the chain, most important first, base models below each other."""
    return "\n".join(plain(line) for line in _lines(lineage, depth=0))


def plain(text: str) -> str:
    """Return text without characters that a terminal would obey."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def shown(value: JsonValue) -> str:
    """Return a value as people read it: ids short, objects as ``name value``."""
    if isinstance(value, str):
        return value[:12] if len(value) in (40, 64) and not set(value) - set("0123456789abcdef") else value
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        return ", ".join(shown(item) for item in value)
    if isinstance(value, dict):
        return ", ".join(f"{key} {shown(item)}" for key, item in value.items())
    return "" if value is None else str(value)


def _lines(lineage: Lineage, *, depth: int) -> Iterator[str]:
    head = f"{lineage.model or lineage.target} {lineage.version}".rstrip()
    yield f"{head} ({lineage.found_by})" + (f", run {lineage.run}" if lineage.run else "")
    for link in lineage.links:
        yield from _link_lines(link)
    if lineage.degraded and not depth:
        yield "not everybody answered:"
        yield from (f"  {problem}" for problem in lineage.degraded)
    if lineage.base is not None:
        yield ""
        yield f"trained on top of (base {depth + 1}):"
        yield from _lines(lineage.base, depth=depth + 1)


def _link_lines(link: Link) -> Iterator[str]:
    yield f"  {link.part:<{_WIDTH}}{link.summary}"
    identity = [f"digest {link.digest}"] if link.digest else []
    identity += [f"in {link.stored}"] if link.stored else []
    if identity:
        yield f"{_INDENT}{', '.join(identity)}"
    for name in _SHOWN[link.part]:
        if link.details.get(name) not in (None, "", [], {}):
            yield f"{_INDENT}{name.replace('_', ' ')}: {shown(link.details[name])}"
    yield from _listed(link)
    for problem in link.missing:
        yield f"{_INDENT}? {problem}"


def _listed(link: Link) -> Iterator[str]:
    """Yield a line for each gate, export and move of an alias."""
    for gate in _objects(link.details.get("stages")):
        champion = f" (champion {gate['champion']})" if gate.get("champion") else ""
        yield f"{_INDENT}{gate['stage']} {gate['verdict']}{champion}: {gate['reason']}"
    for form in _objects(link.details.get("formats")):
        parity = form.get("parity")
        agrees = f", {shown(parity)}" if parity else ""
        yield f"{_INDENT}{form['format']} {form['status']}{agrees}"
    for move in _objects(link.details.get("aliases")):
        until = f" until {move['until']}" if move["until"] else ""
        yield f"{_INDENT}{move['alias']} since {move['at']}{until}, by {move['actor']}: {move['reason']}"


def _objects(value: JsonValue) -> Iterable[dict[str, JsonValue]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
