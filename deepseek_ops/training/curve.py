"""A loss curve in bounded memory: every point of a short run, an even selection of a long one."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pydantic import JsonValue

from deepseek_ops.training.schedule import MAX_CURVE_POINTS, thinned

_HELD = 2 * MAX_CURVE_POINTS


class Curve:
    """Points (step, value), at most 128 of them: beyond that every second one goes and the stride doubles.

    What is kept depends on the points alone, so a resumed run has the curve of an uninterrupted one.
    """

    def __init__(self) -> None:
        self._points: list[tuple[int, float]] = []
        self._stride = 1
        self._seen = 0
        self._last: tuple[int, float] | None = None

    def add(self, step: int, value: float) -> None:
        """Append a point."""
        if self._seen % self._stride == 0:
            self._points.append((step, value))
        self._last = (step, value)
        self._seen += 1
        if len(self._points) > _HELD:
            self._points = self._points[::2]
            self._stride *= 2

    @property
    def last(self) -> float | None:
        """The newest value."""
        return None if self._last is None else self._last[1]

    def points(self) -> tuple[tuple[int, float], ...]:
        """Return at most 64 points, the first and the newest among them."""
        points = list(self._points)
        if self._last is not None and points[-1] != self._last:
            points.append(self._last)
        return thinned(points)

    def dump(self) -> dict[str, JsonValue]:
        """Return the curve as JSON."""
        return {
            "points": [[step, repr(value)] for step, value in self._points],
            "stride": self._stride,
            "seen": self._seen,
            "last": None if self._last is None else [self._last[0], repr(self._last[1])],
        }

    @classmethod
    def load(cls, data: JsonValue) -> Curve:
        """Return what ``dump`` wrote."""
        curve = cls()
        if not isinstance(data, Mapping):
            return curve
        points, last = data["points"], data["last"]
        curve._points = [_point(item) for item in points] if isinstance(points, list) else []
        curve._stride, curve._seen = int(str(data["stride"])), int(str(data["seen"]))
        curve._last = _point(last) if last is not None else None
        return curve


def _point(item: JsonValue) -> tuple[int, float]:
    step, value = item if isinstance(item, list) else (0, math.nan)
    return int(str(step)), float(str(value))
