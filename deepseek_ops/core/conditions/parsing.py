"""Text to tree: tokens and a recursive descent with bounded size and depth."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

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
    Test,
    Variable,
    Window,
)
from deepseek_ops.core.errors import PermanentError

MAX_LENGTH = 500
"""Characters of one condition."""
MAX_DEPTH = 20
"""Nesting of parentheses, ``not`` and unary minus."""
MAX_WINDOW = 10_000
"""Points a window function may look back."""

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<word>[A-Za-z_][A-Za-z_0-9]*)"
    r"|(?P<sign><=|>=|==|!=|[<>+\-*/(),]))"
)
_MEANT = {"=": "==", "&": "and", "|": "or", "!": "!= or not", "\u2264": "<=", "\u2265": ">="}
"""What other languages write -> what is written here."""
_TESTS = ("is_nan", "is_inf")
_WINDOWS = ("mean", "median", "zscore", "robust_zscore", "slope")
_VOCABULARY = (
    "value, threshold, is_nan(), is_inf(), mean(n), median(n), zscore(n), robust_zscore(n), slope(n), and, or, not"
)


@dataclass(eq=False)
class ConditionError(PermanentError, ValueError):
    """A condition cannot be parsed. ``column`` counts from 1."""

    text: str
    column: int
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"condition {self.text[:80]!r}, column {self.column}: {self.problem}; {self.remedy}"


def parse(text: str) -> Statement:
    """Return the tree of a condition. Raises ConditionError with the column and what to write instead."""
    return Parser(text).parse()


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of a condition; ``column`` counts from 1."""

    kind: str
    text: str
    column: int


def _tokens(text: str, pattern: re.Pattern[str], vocabulary: str) -> list[Token]:
    found, position = [], 0
    end = len(text.rstrip())
    while position < end:
        match = pattern.match(text, position)
        if match is None or match.lastgroup is None:
            column = position + len(text[position:]) - len(text[position:].lstrip()) + 1
            sign = text[column - 1]
            remedy = f"did you mean {_MEANT[sign]}?" if sign in _MEANT else f"use {vocabulary}"
            raise ConditionError(text, column, f"{sign!r} is not understood", remedy)
        found.append(Token(match.lastgroup, match[match.lastgroup], match.start(match.lastgroup) + 1))
        position = match.end()
    return [*found, Token("end", "", end + 1)]


class Parser:
    """Recursive descent over one condition; every rule returns a node and checks the kinds of its operands."""

    def __init__(self, text: str, *, tokens: re.Pattern[str] = _TOKEN, vocabulary: str = _VOCABULARY) -> None:
        if len(text) > MAX_LENGTH:
            raise ConditionError(text, MAX_LENGTH, f"it has {len(text)} characters", f"use at most {MAX_LENGTH}")
        self._text = text
        self._vocabulary = vocabulary
        self._tokens = _tokens(text, tokens, vocabulary)
        self._next = 0
        self._depth = 0

    def parse(self) -> Statement:
        """Return the tree of the whole text."""
        root = self._statement(self._any(), self._tokens[0])
        if self._peek.kind != "end":
            raise self._error(self._peek, f"{self._peek.text!r} does not follow", "join statements with 'and' or 'or'")
        return root

    @property
    def _peek(self) -> Token:
        return self._tokens[self._next]

    def _take(self, *texts: str) -> Token | None:
        token = self._peek
        if token.kind in ("sign", "word") and token.text in texts:
            self._next += 1
            return token
        return None

    def _error(self, token: Token, problem: str, remedy: str) -> ConditionError:
        return ConditionError(self._text, token.column, problem, remedy)

    def _deeper(self, token: Token) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(token, f"it is nested deeper than {MAX_DEPTH}", "write it flatter")

    def _statement(self, node: Node, token: Token) -> Statement:
        if isinstance(node, Quantity):
            raise self._error(token, "a number stands where a statement is needed", "compare it, such as value > 20")
        return node

    def _quantity(self, node: Node, token: Token) -> Quantity:
        if isinstance(node, Statement):
            raise self._error(token, "a statement stands where a number is needed", "use value or a number")
        return node

    def _any(self) -> Node:
        return self._junction("or", lambda: self._junction("and", self._not))

    def _junction(self, word: str, operand: Callable[[], Node]) -> Node:
        first = self._peek
        left = operand()
        while self._take(word):
            second = self._peek
            right = operand()
            left = Junction(word, self._statement(left, first), self._statement(right, second))
        return left

    def _not(self) -> Node:
        token = self._take("not")
        if token is None:
            return self._comparison()
        self._deeper(token)
        after = self._peek
        node = Not(self._statement(self._not(), after))
        self._depth -= 1
        return node

    def _comparison(self) -> Node:
        first = self._peek
        left = self._sum()
        sign = self._take(*COMPARISONS)
        if sign is None:
            return left
        second = self._peek
        node = Comparison(sign.text, self._quantity(left, first), self._quantity(self._sum(), second))
        if chained := self._take(*COMPARISONS):
            raise self._error(chained, "comparisons cannot be chained", "write a < b and b < c")
        return node

    def _sum(self) -> Node:
        return self._arithmetic(("+", "-"), lambda: self._arithmetic(("*", "/"), self._unary))

    def _arithmetic(self, signs: tuple[str, ...], operand: Callable[[], Node]) -> Node:
        first = self._peek
        left = operand()
        while sign := self._take(*signs):
            second = self._peek
            right = operand()
            left = Arithmetic(sign.text, self._quantity(left, first), self._quantity(right, second))
        return left

    def _unary(self) -> Node:
        token = self._take("-")
        if token is None:
            return self._primary()
        self._deeper(token)
        after = self._peek
        node = Negative(self._quantity(self._unary(), after))
        self._depth -= 1
        return node

    def _primary(self) -> Node:
        token = self._peek
        self._next += token.kind != "end"
        if token.kind == "number":
            return Number(float(token.text))
        if token.text in ("value", "threshold"):
            return Variable(token.text)
        if token.text in _TESTS or token.text in _WINDOWS:
            return self._call(token)
        if token.text == "(":
            self._deeper(token)
            node = self._any()
            self._close()
            self._depth -= 1
            return node
        what = repr(token.text) if token.text else "the end"
        raise self._error(token, f"{what} stands where a value is needed", f"use {self._vocabulary}")

    def _call(self, name: Token) -> Node:
        if not self._take("("):
            raise self._error(self._peek, f"{name.text} is a function", f"write {name.text}(...)")
        if name.text in _TESTS:
            self._take("value")  # is_nan(value) says the same as is_nan()
            self._close()
            return Test(name.text)
        size = self._peek
        if size.kind != "number" or not size.text.isdigit() or not 2 <= int(size.text) <= MAX_WINDOW:
            raise self._error(
                size,
                f"{name.text} needs a whole number of points from 2 to {MAX_WINDOW}",
                f"write {name.text}(200)",
            )
        self._next += 1
        self._close()
        return Window(name.text, int(size.text))

    def _close(self) -> None:
        if not self._take(")"):
            raise self._error(self._peek, "a closing parenthesis is missing", "close it with ')'")
