"""What was found in a dataset: findings with places and remedies, the report, and the error that a gate raises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, JsonValue

from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.records import Record

SHOWN_CHARACTERS = 120
_ERROR_LINES = 24
_LINE_CHARACTERS = 220


def shown(value: object, limit: int = SHOWN_CHARACTERS) -> str:
    """Return the value for a message: one line, printable, cut."""
    text = value if isinstance(value, str) else repr(value)
    plain = "".join(char if char.isprintable() else " " for char in text[: 4 * limit])
    line = " ".join(plain.split())
    return line if len(line) <= limit and len(text) <= 4 * limit else line[: limit - 3] + "..."


class Example(Record):
    """One place where something was found."""

    file: str
    row: int = Field(ge=0, description="Line or row, from 1; 0 = the whole file.")
    id: str = Field(default="", description="Of the record, where it has one.")
    field: str = ""
    value: str = Field(default="", description="Cut.")
    problem: str = Field(default="", description="What is wrong here, where the finding leaves it open.")

    def __str__(self) -> str:
        place = f"{self.file}, line {self.row}" if self.row else self.file
        value = f"{self.field or 'value'}={self.value!r}" if self.value else self.field
        parts = [part for part in (self.problem, value, f"id {self.id}" if self.id else "") if part]
        return f"{place}: {'; '.join(parts)}" if parts else place


class Finding(Record):
    """One thing that is not as it should be, however often."""

    check: str = Field(description="Dotted name, such as schema.text.max_length.")
    action: Literal["block", "warn", "dropped"]
    count: int = Field(ge=0, description="How often; examples are bounded, this is not.")
    problem: str = Field(description="One sentence with figures and limits.")
    remedy: str
    examples: tuple[Example, ...] = ()

    def lines(self) -> list[str]:
        """Return the finding as lines for people."""
        return [f"{self.action}: {self.check}: {self.problem} {self.remedy}", *(f"    {one}" for one in self.examples)]


class ContentReport(Record):
    """The verdict on a dataset, the findings behind it, and its figures."""

    verdict: Literal["pass", "warn", "block"]
    findings: tuple[Finding, ...] = ()
    figures: dict[str, JsonValue] = Field(default_factory=dict)

    @classmethod
    def of(cls, findings: list[Finding], figures: dict[str, JsonValue]) -> ContentReport:
        """Return the report; its verdict is the worst of the findings' actions."""
        actions = {finding.action for finding in findings}
        verdict: Literal["pass", "warn", "block"] = (
            "block" if "block" in actions else "warn" if "warn" in actions else "pass"
        )
        ordered = sorted(findings, key=lambda one: ("block", "warn", "dropped").index(one.action))
        return cls(verdict=verdict, findings=tuple(ordered), figures=figures)

    def summary(self) -> dict[str, JsonValue]:
        """Return the verdict and the count of each finding: what lineage, results and logs carry."""
        counts: dict[str, JsonValue] = {one.check: one.count for one in self.findings}
        return {"verdict": self.verdict, "findings": counts}


@dataclass(eq=False)
class DataGateError(PermanentError):
    """The data is not what the pipeline file asks for."""

    dataset: str
    report: ContentReport

    def __str__(self) -> str:
        blocking = [one for one in self.report.findings if one.action == "block"]
        head = f"dataset {self.dataset} is refused by data.checks; no version was made:"
        room = max(1, (_ERROR_LINES - 1) // max(len(blocking), 1) - 1)
        lines = [line for one in blocking for line in (one.lines()[: room + 1])]
        cut = [line if len(line) <= _LINE_CHARACTERS else line[: _LINE_CHARACTERS - 3] + "..." for line in lines]
        return "\n".join([head, *cut[: _ERROR_LINES - 1]])
