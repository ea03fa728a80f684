"""The same expressions over named values: ``val_loss < 0.5 and model == 'deepseek-tiny'``, for choosing from a table.

Names may hold dots and ``@`` (``data.seed``); a name with other characters stands in backticks. Texts stand in quotes
and compare with texts; ``true`` and ``false`` are values. What a row does not have, what does not compare, and a result
that is no finite number (``1 / 0``) is unknown, and unknown follows the logic of conditions: a row is chosen only when
the whole is true. A comparison of kinds that differ in every row is a mistake, and is told as one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deepseek_ops.core.conditions.parsing import Parser, Token
from deepseek_ops.core.conditions.tree import (
    COMPARISONS,
    Arithmetic,
    Comparison,
    Junction,
    Negative,
    Node,
    Not,
    Number,
    Quantity,
    Statement,
    Text,
    Variable,
    apply,
    nodes,
)
from deepseek_ops.core.errors import PermanentError

Value = float | str | bool
"""What a row holds under a name."""

_TOKENS = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<text>'[^']*'|\"[^\"]*\")|(?P<quoted>`[^`]+`)"
    r"|(?P<word>[A-Za-z_][A-Za-z_0-9]*(?:[.@][A-Za-z_0-9]+)*)|(?P<sign><=|>=|==|!=|[<>+\-*/(),]))"
)
_VOCABULARY = "names, numbers, 'texts', true, false, and, or, not; a name with other characters stands in `backticks`"
_WORDS = ("and", "or", "not")
_SHOWN = {str: "a text", bool: "true or false", float: "a number"}


@dataclass(eq=False)
class SelectionKindError(PermanentError, ValueError):
    """A comparison of a text with a number, which is true of nothing."""

    text: str
    left: str
    right: str

    def __str__(self) -> str:
        return (
            f"condition {self.text[:80]!r} is true of nothing: {self.left}, but {self.right}; compare numbers with "
            "numbers, and texts with texts in quotes."
        )


@dataclass(frozen=True, slots=True)
class Selection:
    """A parsed selection. ``names`` are those it asks for, in order of first use."""

    text: str
    root: Statement

    @classmethod
    def parse(cls, text: str) -> Selection:
        """Return the parsed selection. Raises ConditionError with the column and what to write instead."""
        return cls(text, _SelectionParser(text, tokens=_TOKENS, vocabulary=_VOCABULARY).parse())

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(node.name for node in nodes(self.root) if isinstance(node, Variable)))

    def holds(self, row: Mapping[str, Value]) -> bool:
        """Return whether the selection is true of a row; unknown counts as false."""
        return _truth(self.root, row) is True

    def require_kinds(self, rows: Sequence[Mapping[str, Value]]) -> None:
        """Raise SelectionKindError for a comparison whose two sides are of different kinds wherever both are known."""
        for node in nodes(self.root):
            if not isinstance(node, Comparison):
                continue
            pairs = [(_value(node.left, row), _value(node.right, row), row) for row in rows]
            known = [pair for pair in pairs if pair[0] is not None and pair[1] is not None]
            if known and all(isinstance(left, str) != isinstance(right, str) for left, right, _ in known):
                row = known[0][2]
                raise SelectionKindError(self.text, _described(node.left, row), _described(node.right, row))

    def __str__(self) -> str:
        return self.text


class _SelectionParser(Parser):
    def _statement(self, node: Node, token: Token) -> Statement:
        if not isinstance(node, Quantity):
            return node
        after = self._peek
        if after.kind == "word" and after.text not in _WORDS:
            raise self._error(after, f"{after.text!r} is no comparison", f"use {', '.join(COMPARISONS)}")
        example = f"{token.text if token.kind in ('word', 'quoted') else 'val_loss'} < 0.5"
        raise self._error(token, "a value stands where a statement is needed", f"compare it, such as {example}")

    def _primary(self) -> Node:
        token = self._peek
        named = self._named(token)
        if named is None:
            return super()._primary()
        self._next += 1
        return named

    def _named(self, token: Token) -> Node | None:
        if token.kind == "text":
            return Text(token.text[1:-1])
        if token.kind == "quoted":
            return Variable(token.text[1:-1])
        if token.kind != "word" or token.text in _WORDS:
            return None
        return Text(token.text) if token.text in ("true", "false") else Variable(token.text)


def _truth(node: Statement, row: Mapping[str, Value]) -> bool | None:
    if isinstance(node, Not):
        inner = _truth(node.operand, row)
        return None if inner is None else not inner
    if isinstance(node, Junction):
        decides = node.word == "or"
        sides = [_truth(side, row) for side in (node.left, node.right)]
        if decides in sides:
            return decides
        return None if None in sides else not decides
    if not isinstance(node, Comparison):
        return None
    left, right = _value(node.left, row), _value(node.right, row)
    if isinstance(left, str) and isinstance(right, str):
        return bool(COMPARISONS[node.sign](left, right))  # type: ignore[arg-type]  # texts compare like numbers
    if isinstance(left, str) or isinstance(right, str) or left is None or right is None:
        return None
    return COMPARISONS[node.sign](left, right)


def _value(node: Quantity, row: Mapping[str, Value]) -> float | str | None:
    if isinstance(node, (Number, Text)):
        return node.value
    if isinstance(node, Variable):
        value = row.get(node.name)
        return ("true" if value else "false") if isinstance(value, bool) else value
    if isinstance(node, Negative):
        inner = _value(node.operand, row)
        return -inner if isinstance(inner, (int, float)) else None
    if not isinstance(node, Arithmetic):
        return None
    left, right = _value(node.left, row), _value(node.right, row)
    if isinstance(left, str) or isinstance(right, str) or left is None or right is None:
        return None
    result = apply(node.sign, left, right)
    return result if math.isfinite(result) else None


def _described(node: Quantity, row: Mapping[str, Value]) -> str:
    """Return what one side of a comparison is, for people."""
    if isinstance(node, Variable):
        return f"{node.name} is {_SHOWN.get(type(row[node.name]), 'a number')}"
    value = _value(node, row)
    return f"{value!r} is a text" if isinstance(value, str) else f"{value:g} is a number"
