"""The result of a record-level comparison: a record with JSON, and text for people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field, JsonValue

from deepseek_ops.core.records import Digest, Record
from deepseek_ops.data.content.findings import shown

EXCERPT_CHARACTERS = 160
_CONTEXT = 40


class Amount(Record):
    """Some records and the tokens in them; of changed records, the tokens gained."""

    records: int = Field(ge=0)
    tokens: int


class Side(Record):
    """The records of one split that were read on one side."""

    documents: int
    characters: int
    tokens: int
    length_quantiles: dict[str, int]
    length_histogram: dict[str, int] = Field(description="Least length of a bin -> records.")
    scripts: dict[str, float]
    languages: dict[str, float]
    language_sample: int


class SplitDiff(Record):
    """What changed in one split."""

    added: Amount
    removed: Amount
    changed: Amount
    moved: int = Field(ge=0, description="Equal records that came here from another split.")
    unchanged: int = Field(ge=0, description="Equal records in files that differ.")
    old: Side | None = None
    new: Side | None = None
    shift: dict[str, JsonValue] = Field(
        default_factory=dict,
        description="ks and wasserstein of lengths; total variation distance of scripts and languages.",
    )
    shift_from: str = Field(default="files that differ", description="What the new records are compared with.")


class RecordExample(Record):
    """One record that changed, its text cut."""

    kind: Literal["added", "removed", "changed"]
    file: str
    row: int
    split: str = ""
    key: str = ""
    old: str = ""
    new: str = ""


class RecordDiff(Record):
    """What changed from one version to another. Files that are equal in both were not read."""

    old: Digest
    new: Digest
    identity: str = Field(description="What makes two records the same one: a field, or their content.")
    measure: str = Field(description="What tokens are.")
    files: dict[str, int]
    files_without_records: int = Field(description="Files that differ and are in no format of records.")
    unreadable: int = Field(description="Lines and rows that are no record.")
    duplicate_keys: int = Field(default=0, description="Records whose key an earlier one of their side has.")
    splits: dict[str, SplitDiff]
    examples: tuple[RecordExample, ...] = ()

    def text(self) -> str:
        """Return the comparison for people."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        files = ", ".join(f"{count} {kind}" for kind, count in self.files.items())
        yield f"{self.old[:12]} -> {self.new[:12]}: files {files}"
        yield f"records are the same by {self.identity}; tokens are {self.measure}"
        if self.files_without_records:
            yield f"{self.files_without_records} files that differ hold no records"
        if self.unreadable:
            yield f"{self.unreadable} lines or rows are no record"
        if self.duplicate_keys:
            yield f"{self.duplicate_keys} records have the key of another one"
        for name, split in self.splits.items():
            yield from _split_lines(name, split)
        for example in self.examples:
            yield from _example_lines(example)


def _split_lines(name: str, split: SplitDiff) -> Iterator[str]:
    amounts = (("added", "+", split.added), ("removed", "-", split.removed), ("changed", "~", split.changed))
    parts = [f"{sign}{amount.records:,} {kind} ({amount.tokens:+,} tokens)" for kind, sign, amount in amounts]
    moved = f", {split.moved:,} moved here" if split.moved else ""
    yield f"{name}: {', '.join(parts)}{moved}, {split.unchanged:,} equal"
    for label, side in (("old", split.old), ("new", split.new)):
        if side is not None:
            quantiles = " ".join(f"{key}={value:,}" for key, value in side.length_quantiles.items())
            yield f"    {label} length {quantiles}"
            yield f"    {label} scripts {_shares(side.scripts)}; languages {_shares(side.languages)}"
    if split.shift:
        moved_by = " ".join(f"{key}={value}" for key, value in split.shift.items())
        yield f"    shift from {split.shift_from}: {moved_by}"


def _shares(shares: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.1%}" for name, share in list(shares.items())[:4]) or "none"


def _example_lines(example: RecordExample) -> Iterator[str]:
    named = f" {example.key}" if example.key else ""
    yield f"{example.kind}{named} ({example.file}, line {example.row})"
    if example.old:
        yield f"    - {example.old}"
    if example.new:
        yield f"    + {example.new}"


def excerpts(old: str, new: str) -> tuple[str, str]:
    """Return both texts cut to a line, from a little before the first place where they differ."""
    same = 0
    if old and new:
        limit = min(len(old), len(new))
        same = next((at for at in range(limit) if old[at] != new[at]), limit)
    start = max(0, same - _CONTEXT)
    cut = [("..." if start else "") + shown(text[start:], EXCERPT_CHARACTERS) if text else "" for text in (old, new)]
    return cut[0], cut[1]
