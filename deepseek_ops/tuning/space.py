"""What a sweep may draw: one dimension per searched hyperparameter."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

from pydantic import Field, JsonValue

from deepseek_ops.core.config import Hyperparameter, Training
from deepseek_ops.core.records import Record

Values = dict[str, JsonValue]
"""Hyperparameter name -> drawn value."""


class Dimension(Record):
    """One searched hyperparameter: a list of choices, or a range with both ends included."""

    name: str
    choices: tuple[int | float, ...] | None = Field(default=None, description="Every value; None for a real range.")
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = Field(default=False, description="Draw whole numbers from the range.")
    ordered: bool = Field(default=False, description="The choices are steps of a range, so neighbours are alike.")

    def contains(self, value: JsonValue) -> bool:
        """Return whether the value could have been drawn here."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return value in self.choices if self.choices is not None else self.low <= value <= self.high


class SearchSpace(Record):
    """The dimensions of one sweep, in file order."""

    dimensions: tuple[Dimension, ...]

    @property
    def size(self) -> int | None:
        """Number of combinations: 1 without dimensions, None when a range leaves infinitely many."""
        sizes = [None if one.choices is None else len(one.choices) for one in self.dimensions]
        return None if None in sizes else math.prod(size for size in sizes if size is not None)

    def grid(self) -> Iterator[Values]:
        """Yield every combination once, the last dimension changing fastest. Needs a finite ``size``."""
        names = [one.name for one in self.dimensions]
        for combination in itertools.product(*(one.choices or () for one in self.dimensions)):
            yield dict(zip(names, combination, strict=True))

    def contains(self, values: Mapping[str, JsonValue]) -> bool:
        """Return whether a trial's values are a point of this space: those of another space teach it nothing."""
        names = {one.name for one in self.dimensions}
        return names == set(values) and all(one.contains(values[one.name]) for one in self.dimensions)


def search_space(training: Training) -> SearchSpace:
    """Return the space that the training's ``values`` and ``range`` hyperparameters span."""
    return SearchSpace(dimensions=tuple(map(_dimension, training.searched)))


def _dimension(one: Hyperparameter) -> Dimension:
    low, high = one.range or (0, 0)
    return Dimension(
        name=one.name,
        choices=one.choices,
        low=low,
        high=high,
        log=one.log,
        integer=one.is_integer,
        ordered=one.range is not None,
    )
