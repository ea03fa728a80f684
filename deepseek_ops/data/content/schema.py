"""Records against a declared schema: every failure names field, value and remedy."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import JsonValue

from deepseek_ops.core.config.data_checks import FieldRule, SchemaCheck
from deepseek_ops.data.content.findings import shown

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "list": (list,),
    "object": (dict,),
}


@dataclass(frozen=True, slots=True)
class Failure:
    """One field of one record that breaks its rule."""

    check: str
    field: str
    value: str
    problem: str
    remedy: str


class RecordRules:
    """The rules of a schema, compiled."""

    def __init__(self, schema: SchemaCheck) -> None:
        self._fields = schema.fields
        self._additional = schema.additional
        self._patterns = {name: re.compile(rule.pattern) for name, rule in schema.fields.items() if rule.pattern}

    def failures(self, value: JsonValue) -> Iterator[Failure]:
        """Yield what is wrong with a record."""
        if not self._fields:
            return
        if not isinstance(value, dict):
            remedy = "Write one JSON object per line."
            yield Failure("schema.record", "", shown(value), "the record is no object", remedy)
            return
        for name, rule in self._fields.items():
            yield from self._field(name, rule, value)
        if not self._additional:
            for name in value.keys() - self._fields.keys():
                remedy = "Declare it below data.checks.schema.fields, or set additional: true."
                yield Failure("schema.additional", name, shown(value[name]), "the field is not declared", remedy)

    def _field(self, name: str, rule: FieldRule, record: dict[str, JsonValue]) -> Iterator[Failure]:
        value = record.get(name)
        if value is None:
            if rule.required:
                yield Failure(f"schema.{name}.required", name, "", "it lacks the field", "Fill it, or required: false.")
            return
        if not isinstance(value, _TYPES[rule.type]) or (isinstance(value, bool) and rule.type != "boolean"):
            problem = f"it is a {type(value).__name__}, not a {rule.type}"
            yield Failure(f"schema.{name}.type", name, shown(value), problem, f"Write a {rule.type}.")
            return
        yield from _measured(name, rule, value)
        if rule.values and value not in rule.values:
            remedy = "Use one of: " + ", ".join(map(str, rule.values[:10])) + "."
            yield Failure(f"schema.{name}.values", name, shown(value), "the value is not allowed", remedy)
        pattern = self._patterns.get(name)
        if pattern is not None and isinstance(value, str) and not pattern.fullmatch(value):
            problem = f"it does not match {pattern.pattern!r}"
            yield Failure(f"schema.{name}.pattern", name, shown(value), problem, "Correct the value or the pattern.")


def _measured(name: str, rule: FieldRule, value: JsonValue) -> Iterator[Failure]:
    if not isinstance(value, str | list):
        return
    unit = "characters" if isinstance(value, str) else "entries"
    if rule.min_length is not None and len(value) < rule.min_length:
        problem = f"it has {len(value)} {unit}, at least {rule.min_length} are asked for"
        yield Failure(f"schema.{name}.min_length", name, shown(value), problem, "Leave such records out.")
    if rule.max_length is not None and len(value) > rule.max_length:
        problem = f"it has {len(value)} {unit}, at most {rule.max_length} are allowed"
        yield Failure(f"schema.{name}.max_length", name, shown(value), problem, "Cut or split such records.")
