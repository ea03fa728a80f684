"""Student's t distribution in pure Python: the control plane has no numpy.

The distribution function is the regularised incomplete beta function by its continued fraction, evaluated with Lentz's
method (Abramowitz & Stegun 26.5.8 and 26.7.1); quantiles by bisection on it.
"""

from __future__ import annotations

import math
from functools import lru_cache
from statistics import NormalDist

_NORMAL = NormalDist()
_TINY = 1e-300


def cdf(value: float, degrees: int) -> float:
    """Return P(T <= value) for ``degrees`` >= 1 degrees of freedom; exact at plus and minus infinity."""
    if math.isinf(value):
        return 0.0 if value < 0 else 1.0
    tail = 0.5 * _incomplete_beta(degrees / 2, 0.5, degrees / (degrees + value * value))
    return 1 - tail if value > 0 else tail


@lru_cache(maxsize=4096)
def quantile(probability: float, degrees: int) -> float:
    """Return the value below which T falls with ``probability``, 0.5 < probability < 1."""
    low = 0.0
    high = max(1.0, 2 * _NORMAL.inv_cdf(probability))
    while cdf(high, degrees) < probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if cdf(middle, degrees) < probability else (low, middle)
    return high


def normal_quantile(probability: float) -> float:
    """Return the value below which a standard normal variable falls with ``probability``."""
    return _NORMAL.inv_cdf(probability)


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b)."""
    if x <= 0 or x >= 1:
        return 0.0 if x <= 0 else 1.0
    logarithm = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    front = math.exp(logarithm)
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1 - front * _fraction(b, a, 1 - x) / b


def _fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, 1 / _guarded(1 - (a + b) * x / (a + 1))
    total = d
    for m in range(1, 2000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d = 1 / _guarded(1 + term * d)
            c = _guarded(1 + term / c)
            total *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return total


def _guarded(value: float) -> float:
    return value if abs(value) > _TINY else _TINY
