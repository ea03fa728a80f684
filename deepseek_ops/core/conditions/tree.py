"""The tree of a parsed condition, and what it says of a history of points."""

from __future__ import annotations

import math
import operator
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

_NORMAL_MAD = 1.4826
"""Standard deviation of a normal distribution in units of its median absolute deviation: 1 / Phi^-1(3/4)."""
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


@dataclass(frozen=True, slots=True)
class Number:
    value: float


@dataclass(frozen=True, slots=True)
class Text:
    """A text in quotes; only selections have them."""

    value: str


@dataclass(frozen=True, slots=True)
class Variable:
    name: str


@dataclass(frozen=True, slots=True)
class Window:
    """``mean``, ``median``, ``zscore``, ``robust_zscore`` or ``slope`` over the last ``size`` points."""

    function: str
    size: int


@dataclass(frozen=True, slots=True)
class Negative:
    operand: Quantity


@dataclass(frozen=True, slots=True)
class Arithmetic:
    sign: str
    left: Quantity
    right: Quantity


@dataclass(frozen=True, slots=True)
class Test:
    """``is_nan()`` or ``is_inf()`` of the newest point."""

    __test__ = False  # pytest collects classes of this name otherwise
    function: str


@dataclass(frozen=True, slots=True)
class Comparison:
    sign: str
    left: Quantity
    right: Quantity


@dataclass(frozen=True, slots=True)
class Not:
    operand: Statement


@dataclass(frozen=True, slots=True)
class Junction:
    """``and`` or ``or`` of two statements."""

    word: str
    left: Statement
    right: Statement


Quantity = Number | Text | Variable | Window | Negative | Arithmetic
Statement = Test | Comparison | Not | Junction
Node = Quantity | Statement


def nodes(node: Node) -> list[Node]:
    """Return the node and everything below it."""
    found: list[Node] = [node]
    for name in ("left", "right", "operand"):
        child: Node | None = getattr(node, name, None)
        if child is not None:
            found += nodes(child)
    return found


def truth(node: Statement, history: Sequence[float], threshold: float | None) -> bool | None:
    """Return whether the statement is true of ``history``; None where that cannot be known yet."""
    if isinstance(node, Not):
        inner = truth(node.operand, history, threshold)
        return None if inner is None else not inner
    if isinstance(node, Junction):
        decides = node.word == "or"
        first = truth(node.left, history, threshold)
        if first is decides:
            return decides  # whatever the other side, which may be dear
        second = truth(node.right, history, threshold)
        if second is decides:
            return decides
        return None if first is None or second is None else not decides
    if isinstance(node, Test):
        test = math.isnan if node.function == "is_nan" else math.isinf
        return test(history[-1]) if history else None
    left, right = _number(node.left, history, threshold), _number(node.right, history, threshold)
    return None if left is None or right is None else COMPARISONS[node.sign](left, right)


def _number(node: Quantity, history: Sequence[float], threshold: float | None) -> float | None:
    if isinstance(node, Number):
        return node.value
    if isinstance(node, Text):
        return None
    if isinstance(node, Variable):
        if node.name == "threshold":
            return threshold
        return history[-1] if history else None
    if isinstance(node, Window):
        return _window(node, history)
    if isinstance(node, Negative):
        inner = _number(node.operand, history, threshold)
        return None if inner is None else -inner
    left, right = _number(node.left, history, threshold), _number(node.right, history, threshold)
    return None if left is None or right is None else apply(node.sign, left, right)


def apply(sign: str, left: float, right: float) -> float:
    """Return the result of ``+ - * /``; a division by zero is IEEE 754's."""
    if sign == "+":
        return left + right
    if sign == "-":
        return left - right
    if sign == "*":
        return left * right
    if right == 0:
        return math.nan if left == 0 or math.isnan(left) else math.copysign(math.inf, left) * math.copysign(1, right)
    return left / right


def _window(node: Window, history: Sequence[float]) -> float | None:
    """Return the statistic, or None while there are fewer points than it needs.

    Points that are not finite are left out: one NaN would blind ``zscore(200)`` for 200 steps.
    """
    if node.function in ("zscore", "robust_zscore"):
        return _zscore(history, node.size, robust=node.function == "robust_zscore")
    if len(history) < node.size:
        return None
    if node.function == "median":
        finite = [value for value in history[-node.size :] if math.isfinite(value)]
        return statistics.median(finite) if len(finite) > 1 else None
    points = [(float(at), value) for at, value in enumerate(history[-node.size :]) if math.isfinite(value)]
    if len(points) < 2:
        return None
    count = len(points)
    mean = sum(value / count for _, value in points)
    if node.function == "mean":
        return mean
    centre = sum(at / count for at, _ in points)
    spread = sum((at - centre) * (at - centre) for at, _ in points)
    return sum((at - centre) * (value - mean) for at, value in points) / spread


def _zscore(history: Sequence[float], size: int, *, robust: bool) -> float | None:
    """Return how many deviations the newest point lies off the centre of the ``size`` points before it."""
    if len(history) <= size:
        return None
    before = [value for value in history[-size - 1 : -1] if math.isfinite(value)]
    if len(before) < 2:
        return None
    if robust:
        centre = statistics.median(before)
        deviation = _NORMAL_MAD * statistics.median(abs(value - centre) for value in before)
    else:
        centre = sum(value / len(before) for value in before)
        deviation = math.sqrt(sum((value - centre) * (value - centre) for value in before) / (len(before) - 1))
    return apply("/", history[-1] - centre, deviation)
