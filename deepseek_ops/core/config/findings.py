"""Pydantic's errors in the words and places of the file."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from deepseek_ops.core.config.base import Place, Problem, Problems, nearest
from deepseek_ops.core.config.document import Located
from deepseek_ops.core.errors import ConfigError

_CREDENTIALS = re.compile(r"://[^/@\s\"]*@")
_QUERY = re.compile(r"(://[^\s\"?]*\?)[^\s\"]+")
_SECRET_KEY = re.compile(r"passw|secret|token|credential|api_?key", re.IGNORECASE)
_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "tuple_type": "a list",
    "list_type": "a list",
    "dict_type": "a mapping of keys and values",
    "model_type": "a mapping of keys and values",
    "model_attributes_type": "a mapping of keys and values",
}


@dataclass(frozen=True)
class Finding:
    """One problem, where it stands, and what to cut out of the document to look on."""

    line: int
    key: str
    problem: str
    remedy: str
    needs: tuple[str, ...]
    """Keys that this problem is about: one cut below any of them makes it a consequence."""
    target: tuple[Located, str | Located] | None
    cuts: tuple[str, ...]

    def error(self, file: str) -> ConfigError:
        return ConfigError(file, self.line, self.key, self.problem, self.remedy)

    def follows_from(self, cuts: Sequence[str], batch: Sequence[Finding]) -> bool:
        """Return whether an earlier cut, or a problem below this one found with it, explains this problem."""
        if any(cut == need or _is_below(cut, need) for cut in cuts for need in self.needs):
            return True
        return any(_is_below(other.key, self.key) for other in batch)


def _is_below(key: str, other: str) -> bool:
    return key.startswith((other + ".", other + "["))


def findings(error: ValidationError, tree: Located) -> list[Finding]:
    """Return the problems behind one failed validation of ``tree``."""
    found = []
    for detail in error.errors(include_url=False):
        trail = _follow(tree, detail["loc"])
        reported = detail.get("ctx", {}).get("error")
        if isinstance(reported, Problems):
            found += [_cross_check(trail, one) for one in reported.found]
        elif detail["type"] == "missing":
            found.append(_missing(trail, str(detail["loc"][-1])))
        else:
            found.append(_wrong_value(trail, detail))
    return found


_Trail = list[Located]
"""Nodes from the root down to the place."""


def _follow(tree: Located, place: Place) -> _Trail:
    """Return the nodes along ``place``; steps the document does not have (tags of unions, defaults) are skipped."""
    trail = [tree]
    for step in place:
        value = trail[-1].value
        if isinstance(value, dict) and isinstance(step, str) and step in value:
            trail.append(value[step])
        elif isinstance(value, dict) and isinstance(step, int) and step < len(value):
            trail.append([*value.values()][step])  # a mapping that stands for a list, such as hyperparameters
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            trail.append(value[step])
    return trail


def _target(trail: _Trail) -> tuple[Located, str | Located] | None:
    if len(trail) < 2:
        return None
    parent, node = trail[-2], trail[-1]
    if isinstance(parent.value, dict):
        return parent, next(name for name, child in parent.value.items() if child is node)
    return parent, node


def _below(node: Located, name: str) -> str:
    return f"{node.key}.{name}" if node.key else name


def _cross_check(trail: _Trail, one: Problem) -> Finding:
    model = trail[-1]
    spot = [*trail[:-1], *_follow(model, one.place)]
    node = spot[-1]
    found = len(spot) - len(trail) == len(one.place) or not isinstance(node.value, dict)
    key = node.key if found else _below(node, str(one.place[-1]))
    needs = (key or "(file)", *(_needed(model, place) for place in one.needs))
    meant = (_below(model, one.meant),) if one.meant else ()
    return Finding(node.line, key, _masked(one.problem), one.remedy, needs, _target(spot), (node.key, *meant))


def _needed(model: Located, place: Place) -> str:
    node = _follow(model, place)[-1]
    return node.key if node is not model else _below(model, str(place[-1]))


def _missing(trail: _Trail, name: str) -> Finding:
    node = trail[-1]
    key = _below(node, name)
    remedy = f"Add '{name}: ...'."
    return Finding(node.line, key, "the key is missing.", remedy, (key,), _target(trail), (node.key,))


def _wrong_value(trail: _Trail, detail: ErrorDetails) -> Finding:
    node = trail[-1]
    problem, remedy = _words(detail, node)
    return Finding(node.line, node.key, problem, remedy, (node.key or "(file)",), _target(trail), (node.key,))


def _words(detail: ErrorDetails, node: Located) -> tuple[str, str]:
    kind, context = detail["type"], detail.get("ctx", {})
    shown = _shown(node)
    if kind in _EXPECTED:
        nothing = "Give it a value, or remove the key." if node.value is None else f"Write {_EXPECTED[kind]}."
        return f"expected {_EXPECTED[kind]}, got {shown}.", nothing
    if kind == "literal_error":
        return f"{shown} is not one of the choices.", _choices(node.value, str(context["expected"]))
    if kind == "union_tag_invalid":
        return f"type {str(context['tag'])[:60]!r} is not known.", _choices(context["tag"], context["expected_tags"])
    if kind == "union_tag_not_found":
        return f"the entry {shown} has no type.", "Add 'type: ...'."
    if kind == "value_error":
        return f"{shown} is refused: {_masked(str(context['error'])).removesuffix('.')}.", ""
    if kind == "string_pattern_mismatch":  # the one pattern without words of its own is that of names
        return f"{shown} is not a name.", "Use up to 100 letters, digits, '.', '_', '-'; a letter or digit first."
    if kind in ("too_short", "too_long"):
        return f"{shown} has {context['actual_length']} entries.", _length(kind, context)
    message = _masked(detail["msg"]).removeprefix("Input ")
    return f"{shown} {message}.", "Correct the value."


def _length(kind: str, context: Mapping[str, object]) -> str:
    return f"Write at least {context['min_length']}." if kind == "too_short" else f"At most {context['max_length']}."


def _choices(given: object, expected: str) -> str:
    known = re.findall(r"'([^']+)'", expected)
    return nearest(str(given), known) if isinstance(given, str) else "Use one of: " + ", ".join(known) + "."


def _masked(text: str) -> str:
    return _QUERY.sub(r"\1***", _CREDENTIALS.sub("://***@", text))


def _shown(node: Located) -> str:
    """Return the value for a message: short, and without credentials."""
    if _SECRET_KEY.search(node.key.rpartition(".")[2]):
        return "'***'"
    if isinstance(node.value, str):
        text = _masked(node.value)
        return repr(text if len(text) <= 80 else text[:77] + "...")
    text = _masked(json.dumps(node.plain(), ensure_ascii=False))
    return text if len(text) <= 80 else text[:77] + "..."
