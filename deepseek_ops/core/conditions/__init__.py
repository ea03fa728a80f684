"""The expression language of alert conditions: ``value > 20 or is_nan()``. Own parser, no ``eval``.

Grammar, loosest first: ``or``, ``and``, ``not``, one comparison, ``+ -``, ``* /``, unary ``-``. Names are ``value``
(the newest point) and ``threshold``; functions are ``is_nan()`` and ``is_inf()`` of the newest point, and over the last
n points ``mean(n)``, ``median(n)`` and ``slope(n)`` (least squares, per point). ``zscore(n)`` says how many standard
deviations the newest point lies off the mean of the n before it; ``robust_zscore(n)`` does so by their median and their
median absolute deviation, which the outliers that it looks for cannot widen. Window functions leave out points that
are not finite: one NaN would blind ``zscore(200)`` for 200 steps.

What cannot be known yet (``mean(20)`` after five points, ``threshold`` without a threshold) is *unknown*, and unknown
follows three-valued logic: ``unknown or true`` is true, everything else that depends on it is unknown. A condition
holds only when it is true, so an alert never fires on missing evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deepseek_ops.core.conditions.parsing import MAX_DEPTH, MAX_LENGTH, MAX_WINDOW, ConditionError, parse
from deepseek_ops.core.conditions.selection import Selection, SelectionKindError
from deepseek_ops.core.conditions.tree import Statement, Variable, Window, nodes, truth

__all__ = ["MAX_DEPTH", "MAX_LENGTH", "MAX_WINDOW", "Condition", "ConditionError", "Selection", "SelectionKindError"]


@dataclass(frozen=True, slots=True)
class Condition:
    """A parsed condition. ``str`` gives the text it was written as."""

    text: str
    root: Statement

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Return the parsed condition. Raises ConditionError with the column and what to write instead."""
        return cls(text, parse(text))

    def holds(self, history: Sequence[float], *, threshold: float | None = None) -> bool:
        """Return whether the condition is true of ``history``, oldest point first; unknown counts as false."""
        return truth(self.root, history, threshold) is True

    @property
    def uses_threshold(self) -> bool:
        return any(isinstance(node, Variable) and node.name == "threshold" for node in nodes(self.root))

    @property
    def window(self) -> int:
        """How many of the newest points the condition looks at: the history a caller must keep."""
        return max((node.size + 1 for node in nodes(self.root) if isinstance(node, Window)), default=1)

    def __str__(self) -> str:
        return self.text
