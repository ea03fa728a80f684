"""What every file model shares: strictness, exact error places, quantities with units, warnings.

Models validate values; places (file, line) are added by ``reading``, which knows the YAML nodes. A check across
fields raises ``Problems``, so one check can name several places, each with its remedy.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Literal, TypeAlias, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    JsonValue,
    PlainSerializer,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from deepseek_ops.core.config.globs import check_glob
from deepseek_ops.core.quantities import (
    Span,
    format_duration,
    format_percent,
    parse_duration,
    parse_percent,
    parse_span,
)

T = TypeVar("T")
Place: TypeAlias = tuple[str | int, ...]
"""Keys and list positions from a model down to a value."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong below the model that reports it."""

    place: Place
    problem: str
    remedy: str
    needs: tuple[Place, ...] = ()
    """Other places the check reads: while one of them is wrong itself, the check says nothing."""
    meant: str = ""
    """For an unknown key: the key that was probably meant."""


@dataclass
class Problems(ValueError):  # noqa: N818  (it carries many)
    """Several things a check found wrong. Pydantic carries it; ``reading`` unpacks it."""

    found: tuple[Problem, ...]

    def __str__(self) -> str:
        return "; ".join(f"{one.problem} {one.remedy}" for one in self.found)


@dataclass
class Notes:
    """Validation context: what the file may say but should know about."""

    warnings: list[str] = field(default_factory=list)


def warn(info: ValidationInfo, text: str) -> None:
    """Keep a warning for the caller of the validation, where it asked for them."""
    if isinstance(info.context, Notes) and text not in info.context.warnings:
        info.context.warnings.append(text)


def closest(word: str, known: Sequence[str]) -> str:
    """Return the known word that ``word`` resembles, or an empty text."""
    close = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    return close[0] if close else ""


def nearest(word: str, known: Sequence[str]) -> str:
    """Return a remedy for an unknown word: the known word it resembles, or the list of known ones."""
    meant = closest(word, known)
    return f"Did you mean {meant!r}?" if meant else "Use one of: " + ", ".join(sorted(known)) + "."


def without_repeats(values: tuple[T, ...]) -> tuple[T, ...]:
    """Return the values. Raises ValueError naming the first one that stands there twice."""
    again = next((value for at, value in enumerate(values) if value in values[:at]), None)
    if again is not None:
        raise ValueError(f"{again!r} stands there twice; name each once")
    return values


class Config(BaseModel):
    """A part of a file that people write: frozen, unknown keys refused by name."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, data: object) -> object:
        if not isinstance(data, dict):
            return data
        known = [info.alias or name for name, info in cls.model_fields.items()]
        unknown = [str(key) for key in data if key not in known]
        if unknown:
            found = (
                Problem((key,), f"unknown key {key!r}.", nearest(key, known), meant=closest(key, known))
                for key in unknown
            )
            raise Problems(tuple(found))
        return data


def _glob(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("a glob is a text such as exp/*")  # noqa: TRY004  (pydantic reports ValueError)
    return check_glob(value)


def _number(value: object) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or abs(value) == float("inf"):
        raise ValueError("write a finite number")
    return value


def _percent_step(value: object) -> int:
    share = value if isinstance(value, int) and not isinstance(value, bool) else parse_percent(value)
    if share != int(share) or not 1 <= share <= 100:
        raise ValueError("write a whole percentage from 1 to 100")
    return int(share)


Duration = Annotated[
    timedelta,
    PlainValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
    WithJsonSchema(
        {
            "type": "string",
            "pattern": r"^(\d+(\.\d+)? ?[smhdw] *)+$",
            "examples": ["30m", "2h", "1h30m"],
        }
    ),
]
Percent = Annotated[
    float,
    PlainValidator(parse_percent),
    PlainSerializer(format_percent, return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^\d{1,3}(\.\d+)? ?%$", "examples": ["20%"]}),
]
"""Percent, 0 to 100, from a text with its sign."""
Steps = Annotated[
    Span,
    PlainValidator(parse_span),
    PlainSerializer(str, return_type=str),
    WithJsonSchema(
        {"type": "string", "pattern": r"^(\d+ ?steps?|(\d+(\.\d+)? ?[smhdw] *)+)$", "examples": ["3 steps"]}
    ),
]
PercentStep = Annotated[
    int,
    PlainValidator(_percent_step),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1, "maximum": 100}, {"type": "string"}]}),
]
"""Whole percent, 1 to 100, as a number or with its sign."""


@dataclass(frozen=True, slots=True)
class Matches:
    """Annotation of a text that must match a pattern; ``expected`` is what the message says instead of the pattern."""

    pattern: str
    expected: str

    def __get_pydantic_core_schema__(self, source: object, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), "pattern": self.pattern}

    def _check(self, value: str) -> str:
        if not re.search(self.pattern, value):
            raise ValueError(f"write {self.expected}")
        return value


Number = Annotated[int | float, PlainValidator(_number), WithJsonSchema({"type": "number"})]
Glob = Annotated[str, PlainValidator(_glob), WithJsonSchema({"type": "string", "minLength": 1})]
Word = Annotated[str, Matches(r"^[A-Za-z][A-Za-z0-9_./-]{0,99}$", "a name of letters, digits and _ . / -")]
"""Name of a metric."""
RepoPath = Annotated[
    str,
    Matches(
        r"^(?!/)(?!.*(^|/)\.\.?(/|$))(?!.*://)[^\x00-\x1f\\]{1,300}$",
        "a path inside the model repository, without '..' and a leading '/'",
    ),
]
ObjectUri = Annotated[
    str,
    Matches(
        r"^(s3://[A-Za-z0-9][A-Za-z0-9._-]{0,62}(/|$)|file:///)[^\x00-\x20?#@]*$",
        "s3://bucket/prefix/ or file:///folder/, without credentials",
    ),
]
"""Never carries credentials: they come from a connection."""
VersionText = Annotated[str, Matches(r"^v?\d{1,6}\.\d{1,6}\.\d{1,6}$", "a version such as v1.2.0")]


def _thawed(value: object) -> object:
    """Return the value with lists for tuples: JSON has no tuples."""
    if isinstance(value, dict):
        return {name: _thawed(child) for name, child in value.items()}
    return [_thawed(child) for child in value] if isinstance(value, list | tuple) else value


Json = Annotated[dict[str, JsonValue], BeforeValidator(_thawed)]
"""A mapping that is passed on as it is."""
Direction = Literal["minimize", "maximize"]
