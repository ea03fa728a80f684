"""One hyperparameter of a training: fixed, chosen from values, or drawn from a range."""

from __future__ import annotations

import math

from pydantic import Field, JsonValue, TypeAdapter, ValidationError, field_validator, model_validator

from deepseek_ops.core.config.base import Config, Number, Problem, Problems, nearest, without_repeats
from deepseek_ops.core.records import Hyperparameters

_USUAL_NAMES = {
    "lr": "learning_rate",
    "steps": "max_steps",
    "seq_len": "sequence_length",
    "max_length": "sequence_length",
    "context_length": "sequence_length",
    "warmup": "warmup_ratio",
    "clip": "max_grad_norm",
    "grad_clip": "max_grad_norm",
    "bs": "batch_size",
    "wd": "weight_decay",
    "beta2": "adam_beta2",
}
_KNOWN: list[JsonValue] = [*Hyperparameters.model_fields]
INTEGER_HYPERPARAMETERS = frozenset({"batch_size", "max_steps", "sequence_length"})
"""Hyperparameters that are whole numbers, whatever range they are searched in."""

_MOST_CHOICES = 10_000
"""Steps of a range up to which it is a list of choices."""


class Hyperparameter(Config):
    """One hyperparameter: a fixed ``value``, or ``values`` or a ``range`` to search."""

    name: str = Field(description="A field of Hyperparameters.", json_schema_extra={"enum": _KNOWN})
    value: Number | None = Field(default=None, description="Fixed value.")
    values: tuple[Number, ...] | None = Field(default=None, min_length=1, description="Values to choose from.")
    range: tuple[Number, Number] | None = Field(default=None, description="[low, high], both included.")
    log: bool = Field(default=False, description="Search the range on a logarithmic scale.")
    step: Number | None = Field(default=None, description="Distance of two values of the range.")

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in Hyperparameters.model_fields:
            usual = _USUAL_NAMES.get(value.lower())
            known = list(Hyperparameters.model_fields)
            remedy = f"Did you mean {usual!r}?" if usual else nearest(value, known)
            raise ValueError(f"no hyperparameter has this name. {remedy} Known: {', '.join(known)}")
        return value

    @field_validator("values")
    @classmethod
    def _once_each(cls, value: tuple[int | float, ...] | None) -> tuple[int | float, ...] | None:
        return without_repeats(value) if value is not None else None

    @model_validator(mode="after")
    def _consistent(self) -> Hyperparameter:
        problems = [*self._shape_problems(), *self._value_problems()]
        if problems:
            raise Problems(tuple(problems))
        return self

    def _shape_problems(self) -> list[Problem]:
        given = [name for name in ("value", "values", "range") if getattr(self, name) is not None]
        if len(given) != 1:
            what = " and ".join(given) if given else "no value"
            return [Problem((), f"{self.name} has {what}.", "Give one of value, values and range.")]
        if self.range is not None:
            return self._range_problems(*self.range)
        stray = [name for name in ("log", "step") if getattr(self, name)]
        remedy = "Remove it, or give range: [lo, hi]."
        return [Problem((name,), f"{name} belongs to a range.", remedy) for name in stray]

    def _range_problems(self, low: float, high: float) -> list[Problem]:
        if not low < high:
            return [Problem(("range",), f"{low} is not below {high}.", "Write [low, high].")]
        if self.log and low <= 0:
            return [Problem(("range",), "a logarithmic range starts above 0.", "Raise the lower end, or drop log.")]
        return [] if self.step is None else self._step_problems(self.step, high - low)

    def _step_problems(self, step: float, width: float) -> list[Problem]:
        if self.log:
            return [Problem(("step",), "a logarithmic range has no step.", "Use values instead, or drop one of them.")]
        if not 0 < step <= width:
            return [Problem(("step",), f"step {step} does not fit the range.", f"Use at most {width}.")]
        if self.is_integer and step != int(step):
            return [Problem(("step",), f"{self.name} is a whole number, step {step} is not.", "Use a whole step.")]
        if width / step > _MOST_CHOICES:
            text = f"the range has more than {_MOST_CHOICES:,} steps."
            return [Problem(("step",), text, "Use a wider step, or none to draw any value.")]
        return []

    def _value_problems(self) -> list[Problem]:
        found = []
        for key in ("value", "values", "range"):
            given = getattr(self, key)
            many = given if isinstance(given, tuple) else () if given is None else (given,)
            for at, value in enumerate(many):
                if complaint := _refusal(self.name, value):
                    place = (key, at) if isinstance(given, tuple) else (key,)
                    found.append(Problem(place, f"{self.name}={value!r}: {complaint}.", "Correct the value."))
        return found

    @property
    def searched(self) -> bool:
        return self.value is None

    @property
    def is_integer(self) -> bool:
        return self.name in INTEGER_HYPERPARAMETERS

    @property
    def choices(self) -> tuple[int | float, ...] | None:
        """Every value it can take in the order written, or None when a range leaves infinitely many."""
        if self.value is not None:
            return (self.value,)
        if self.values is not None:
            return self.values
        low, high = self.range or (0, 0)
        step = 1 if self.step is None and self.is_integer and not self.log else self.step
        if step is None:
            return None
        if (high - low) / step > _MOST_CHOICES:
            return None
        count = math.floor((high - low) / step + 1e-9) + 1
        return tuple(_tidy(low + at * step) for at in range(count))


def _tidy(value: float) -> int | float:
    """Return the value as a person would have written it: 0.3, not 0.30000000000000004."""
    return value if isinstance(value, int) else float(f"{value:.12g}")


_ADAPTERS = {
    name: TypeAdapter(Hyperparameters.__pydantic_fields__[name].rebuild_annotation())
    for name in Hyperparameters.model_fields
}


def _refusal(name: str, value: float) -> str:
    """Return why the record refuses the value, or an empty text."""
    try:
        _ADAPTERS[name].validate_python(value)
    except ValidationError as error:
        return error.errors()[0]["msg"].lower()
    return ""
