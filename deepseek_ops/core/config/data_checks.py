"""What a prepared dataset must be before it becomes a version: ``data.checks`` of the pipeline file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from deepseek_ops.core.config.base import Config, Matches, Percent, Problem, Problems, RepoPath
from deepseek_ops.core.records import Name

Action = Literal["block", "warn"]
"""``block`` ends the job and makes no version; ``warn`` writes the finding into the report and goes on."""
Cleaning = Literal["drop", "block", "warn", "off"]
"""As ``Action``; ``drop`` leaves the training documents out that cause the finding, ``off`` does not look."""
PiiKind = Literal["email", "phone", "ip_address", "iban", "card_number", "api_key"]
VersionName = Annotated[
    str,
    Matches(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}(@[^\s@]{1,100})?$", "a dataset, dataset@branch, tag or version id"),
]


class FieldRule(Config):
    """What one field of every record must be."""

    type: Literal["string", "integer", "number", "boolean", "list", "object"] = Field(
        default="string", description="JSON type; an integer is a number, too."
    )
    required: bool = Field(default=True, description="Whether a record without it, or with null, is wrong.")
    min_length: int | None = Field(default=None, ge=0, description="Least characters of a text, or entries of a list.")
    max_length: int | None = Field(default=None, ge=0, description="Most characters of a text, or entries of a list.")
    values: tuple[str | int | float | bool, ...] = Field(default=(), description="Allowed values; none = any.")
    pattern: str | None = Field(default=None, max_length=300, description="Regular expression the whole text matches.")

    @model_validator(mode="after")
    def _possible(self) -> FieldRule:
        problems = []
        if self.min_length is not None and self.max_length is not None and self.min_length > self.max_length:
            text = f"min_length {self.min_length} is above max_length {self.max_length}."
            problems.append(Problem(("min_length",), text, "Swap them.", needs=(("max_length",),)))
        if self.pattern is not None:
            try:
                re.compile(self.pattern)
            except re.error as error:
                text = f"is no regular expression: {error}."
                problems.append(Problem(("pattern",), text, "Correct it; escape special characters with a backslash."))
        if problems:
            raise Problems(tuple(problems))
        return self


class SchemaCheck(Config):
    """The fields of every record."""

    fields: dict[str, FieldRule] = Field(default_factory=dict, description="Field name -> rule.")
    additional: bool = Field(default=True, description="Whether records may have other fields.")
    action: Action = Field(default="block", description="What a wrong record does.")


class QualityCheck(Config):
    """Shares over all documents. A limit that is not set is reported and not judged."""

    min_documents: int | None = Field(default=None, ge=1, description="Least documents that must be left.")
    max_empty: Percent | None = Field(default=None, description="Most documents without a letter or digit.")
    max_control: Percent | None = Field(default=None, description="Most documents with control characters.")
    max_replacement: Percent | None = Field(
        default=None, description="Most documents with U+FFFD, the mark of text that was decoded wrongly."
    )
    languages: tuple[str, ...] = Field(default=(), description="Allowed languages, ISO 639-1 such as en; none = any.")
    min_languages: Percent = Field(default=95.0, description="Least share of sampled documents in those languages.")
    pii: tuple[PiiKind, ...] = Field(default=(), description="Patterns of personal data to look for.")
    max_pii: Percent = Field(default=0.0, description="Most documents that may match one of these patterns.")
    max_drift: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Largest Kolmogorov-Smirnov distance of lengths to the version before, per split; 0 = equal.",
    )
    action: Action = Field(default="warn", description="What a limit that is passed does.")


class DuplicateCheck(Config):
    """Repeated documents. Equal ones are always left out; these keys are about nearly equal ones."""

    near: Cleaning = Field(
        default="drop", description="What a document of one split that nearly equals one of another does."
    )
    threshold: Percent = Field(default=80.0, description="Jaccard similarity of 5-word shingles from which on.")
    max_near: Percent | None = Field(
        default=None, description="Most documents that nearly equal an earlier one, in whatever split; beyond = block."
    )
    max_exact: Percent | None = Field(default=None, description="Most documents that equal an earlier one: block.")

    @model_validator(mode="after")
    def _in_reach(self) -> DuplicateCheck:
        if not 50 <= self.threshold <= 95:
            text = f"{self.threshold:g}% is out of the reach of the 128 hashes we compare."
            raise Problems((Problem(("threshold",), text, "Choose 50% to 95%."),))
        return self


class EvaluationSet(Config):
    """A set the model will be judged on, in a file of the model repository or in a dataset version."""

    name: Name = Field(description="For the report.")
    path: RepoPath | None = Field(default=None, description="File in the model repository: JSON lines, Parquet, text.")
    dataset: VersionName | None = Field(default=None, description="Dataset, dataset@branch, tag or version id.")
    pattern: str = Field(default="*", min_length=1, description="Which files of the dataset; * crosses folders.")
    fields: tuple[str, ...] = Field(default=(), description="Fields that make the item's text; none = every text.")

    @model_validator(mode="after")
    def _one_source(self) -> EvaluationSet:
        if (self.path is None) == (self.dataset is None):
            problem = Problem((), "an evaluation set needs one of path and dataset.", "Keep one of them.")
            raise Problems((problem,))
        return self


_FILE_SUFFIXES = (".jsonl", ".ndjson", ".parquet", ".txt", ".md", ".gz", ".zst", ".json", ".csv")


def _expanded(value: object) -> object:
    """Return the list with texts spelt out: a text with a slash or a dot is a path, another one a dataset."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        return value
    return tuple(_spelt_out(entry) if isinstance(entry, str) else entry for entry in value)


def _spelt_out(text: str) -> dict[str, str]:
    is_path = "/" in text.partition("@")[0] or text.endswith(_FILE_SUFFIXES)
    stem = text.rpartition("/")[2] if is_path else text
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:100] or "set"
    return {"name": name, "path" if is_path else "dataset": text}


class ContaminationCheck(Config):
    """Evaluation items that the training split holds already."""

    against: Annotated[
        tuple[EvaluationSet, ...],
        BeforeValidator(_expanded, json_schema_input_type=tuple[EvaluationSet | str, ...]),
    ] = Field(default=(), description="Evaluation sets; a text is a path of the repository, or the name of a dataset.")
    ngram: int = Field(
        default=13, ge=5, le=50, description="Words in a row that must be equal; shorter items need all of theirs."
    )
    share: Percent = Field(
        default=50.0, description="Share of an item's words in such runs from which on the item counts as known."
    )
    max_items: Percent = Field(default=0.0, description="Most items of one set that may be known.")
    action: Literal["drop", "block", "warn"] = Field(
        default="block", description="What known items do; drop leaves the training documents out that hold them."
    )

    @model_validator(mode="after")
    def _named_once(self) -> ContaminationCheck:
        names = [one.name for one in self.against]
        again = next((at for at, name in enumerate(names) if name in names[:at]), None)
        if again is not None:
            text = f"the name {names[again]!r} stands there twice."
            raise Problems((Problem(("against", again), text, "Give each evaluation set a name of its own."),))
        return self


class DataChecks(Config):
    """What is looked at before a dataset becomes a version."""

    schema_: SchemaCheck = Field(default=SchemaCheck(), alias="schema", description="What every record must hold.")
    quality: QualityCheck = Field(default=QualityCheck(), description="Shares over all documents.")
    duplicates: DuplicateCheck = Field(default=DuplicateCheck(), description="Nearly equal documents.")
    contamination: ContaminationCheck = Field(default=ContaminationCheck(), description="Evaluation items in training.")
    examples: int = Field(default=5, ge=1, le=50, description="Examples per finding; counts are always complete.")
