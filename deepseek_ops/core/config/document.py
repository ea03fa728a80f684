"""YAML text to plain values that remember their line. Safe by construction: no tags, no objects, bounded work.

Scalars follow the YAML 1.2 core schema, so ``on`` and ``no`` are texts, ``1e-4`` is a number and ``1:30`` is not 90.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import yaml
from pydantic import JsonValue

from deepseek_ops.core.errors import ConfigError

MAX_BYTES = 1 << 20
MAX_VALUES = 20_000
"""Values after aliases are expanded: a file of a person has hundreds."""
MAX_DEPTH = 50

_PLAIN = "plain"
_CORE = "tag:yaml.org,2002:"
_NULL = ("", "~", "null", "Null", "NULL")
_TRUE = ("true", "True", "TRUE")
_FALSE = ("false", "False", "FALSE")
_INTEGER = re.compile(r"[-+]?[0-9]+")
_OTHER_BASE = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass
class Located:
    """A value, the line it stands on (from 1; 0 = not from a file), and its dotted key in the file as written."""

    value: dict[str, Located] | list[Located] | str | int | float | bool | None
    line: int
    key: str

    def plain(self) -> JsonValue:
        """Return the value without places."""
        if isinstance(self.value, dict):
            return {name: child.plain() for name, child in self.value.items()}
        if isinstance(self.value, list):
            return [child.plain() for child in self.value]
        return self.value


@dataclass(eq=False)
class _RefusedError(Exception):
    """Reading has to stop here."""

    line: int
    problem: str
    remedy: str


def parse_document(text: str | bytes, *, file: str) -> tuple[Located | None, list[ConfigError]]:
    """Return the document with places, and what is wrong with it as YAML; without a document the first is fatal."""
    try:
        node = _compose(_decode(text))
        builder = _Builder(file)
        tree = builder.build(node, "", node.start_mark.line + 1, 0)
    except _RefusedError as error:
        return None, [ConfigError(file, error.line, "", error.problem, error.remedy)]
    return tree, builder.problems


def locate(value: JsonValue, key: str = "") -> Located:
    """Return plain JSON as a tree without lines; list entries that have a name are called by it."""
    if isinstance(value, dict):
        return Located({name: locate(child, f"{key}.{name}".lstrip(".")) for name, child in value.items()}, 0, key)
    if isinstance(value, list):
        return Located([locate(child, _entry_key(key, at, child)) for at, child in enumerate(value)], 0, key)
    return Located(value, 0, key)


def parse_scalar(text: str) -> JsonValue:
    """Return the value that a text names in YAML, such as ``[1, 2]`` or ``1e-3``; text that is no YAML is itself."""
    tree, problems = parse_document(text, file="")
    return text if tree is None or problems else tree.plain()


def _entry_key(key: str, at: int, child: JsonValue) -> str:
    name = child.get("name") if isinstance(child, dict) else None
    return f"{key}.{name}" if isinstance(name, str) else f"{key}[{at}]"


def _decode(text: str | bytes) -> str:
    size = len(text) if isinstance(text, bytes) else len(text.encode("utf-8", "surrogatepass"))
    if size > MAX_BYTES:
        raise _RefusedError(0, f"the file has {size:,} bytes.", f"Keep it below {MAX_BYTES:,}; is it the right file?")
    if isinstance(text, str):
        return text.removeprefix("\ufeff")
    try:
        return text.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = text[: error.start].count(b"\n") + 1
        raise _RefusedError(
            line, f"byte {text[error.start]:#04x} is not UTF-8.", "Save the file in UTF-8 encoding."
        ) from error


class _Loader(yaml.SafeLoader):
    """Composes nodes only; counts them, and tells plain scalars from quoted and tagged ones."""

    values = 0
    depth = 0

    def resolve(self, kind: type[yaml.Node], value: object, implicit: tuple[bool, bool]) -> str:  # noqa: ARG002
        if kind is yaml.ScalarNode:
            return _PLAIN if implicit[0] else _CORE + "str"
        return _CORE + ("map" if kind is yaml.MappingNode else "seq")

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self.values += 1
        self.depth += 1
        line = int(self.line) + 1
        if self.values > 2 * MAX_VALUES:
            raise _RefusedError(line, f"the file has more than {MAX_VALUES:,} values.", "Make it smaller.")
        if self.depth > MAX_DEPTH:
            raise _RefusedError(line, f"the file is nested deeper than {MAX_DEPTH}.", "Write it flatter.")
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _compose(text: str) -> yaml.Node:
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
    except yaml.reader.ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise _RefusedError(line, f"character {error.character!r} is not allowed.", "Remove it.") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 0
        raise _RefusedError(line, _syntax(error), "Correct the YAML: indentation, quotes, brackets.") from error
    if node is None:
        raise _RefusedError(0, "the file is empty.", "Write at least 'name: my-model'.")
    return node


def _syntax(error: yaml.MarkedYAMLError) -> str:
    column = f" in column {error.problem_mark.column + 1}" if error.problem_mark else ""
    return f"not valid YAML{column}: {error.problem or error.context}."


class _Builder:
    """Nodes to located values; keeps count, so that nested aliases cannot expand without bound."""

    def __init__(self, file: str) -> None:
        self._file = file
        self._values = 0
        self.problems: list[ConfigError] = []

    def build(self, node: yaml.Node, key: str, line: int, depth: int) -> Located:
        self._values += 1
        if self._values > MAX_VALUES:
            raise _RefusedError(
                line, f"the file has more than {MAX_VALUES:,} values once its aliases are expanded.", "Make it smaller."
            )
        if depth > MAX_DEPTH:
            raise _RefusedError(line, f"the file is nested deeper than {MAX_DEPTH}.", "Does an alias contain itself?")
        if isinstance(node, yaml.MappingNode) and node.tag == _CORE + "map":
            return Located(self._mapping(node, key, depth), line, key)
        if isinstance(node, yaml.SequenceNode) and node.tag == _CORE + "seq":
            entries = [
                self.build(child, f"{key}[{at}]", child.start_mark.line + 1, depth + 1)
                for at, child in enumerate(node.value)
            ]
            return Located(entries, line, key)
        if isinstance(node, yaml.ScalarNode) and node.tag in (_PLAIN, _CORE + "str"):
            return Located(self._scalar(node, key, line), line, key)
        self._report(line, key, f"the tag {node.tag!r} is not allowed.", "Write plain values; quote a text.")
        return Located(None, line, key)

    def _mapping(self, node: yaml.MappingNode, key: str, depth: int) -> dict[str, Located]:
        found: dict[str, Located] = {}
        for name_node, child in node.value:
            line = name_node.start_mark.line + 1
            if not isinstance(name_node, yaml.ScalarNode):
                self._report(line, key, "a key must be a text.", "Write name: value.")
                continue
            name = name_node.value
            path = f"{key}.{name}" if key else name
            if name in found:
                self._report(line, path, f"the key stands there twice, first in line {found[name].line}.", "Keep one.")
                continue
            if name == "<<":
                self._report(line, path, "merge keys are not supported.", "Write the values out.")
                continue
            found[name] = self.build(child, path, line, depth + 1)
        return found

    def _scalar(self, node: yaml.ScalarNode, key: str, line: int) -> str | int | float | bool | None:
        text: str = node.value
        if node.tag != _PLAIN:
            return text
        if text in _NULL:
            return None
        if text in _TRUE or text in _FALSE:
            return text in _TRUE
        if _NOT_FINITE.fullmatch(text):
            self._report(line, key, f"{text} is not a finite number.", "Write a number, or leave the key out.")
            return None
        return self._numeric(text, key, line)

    def _numeric(self, text: str, key: str, line: int) -> str | int | float:
        if _INTEGER.fullmatch(text) and len(text) <= 19:
            return int(text)
        if _OTHER_BASE.fullmatch(text) and len(text) <= 18:
            return int(text, 0)
        if _FLOAT.fullmatch(text):
            number = float(text)
            if math.isfinite(number):
                return number
            self._report(line, key, f"{text[:40]} is too large a number.", "Write a smaller one.")
        return text

    def _report(self, line: int, key: str, problem: str, remedy: str) -> None:
        self.problems.append(ConfigError(self._file, line, key, problem, remedy))
