"""What results look like in Git: messages people read in ``git log``, and that this module reads back.

The subject says what was trained on what, the body what a reader compares, the trailers what a program follows. The
trailers are Git's own (``git log --format='%(trailers:key=Run-Id)'`` finds them) and numbers are JSON, so reading a
message gives back the very record it was written from, also after a cherry-pick or a sign-off has added lines. A text
may hold several records, as a squash merge's message or a note does. What anybody may have written is read here, so
nothing that is read may raise, and a record that is not whole is none.
"""

from __future__ import annotations

import datetime as dt
import itertools
import json
import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, JsonValue, StringConstraints, ValidationError

from deepseek_ops.core.records import Digest, Name, Record, SemVer

_SECTIONS = ("Hyperparameters:", "Performance:", "Comparisons:")

Key = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_./@-]{0,99}$")]

_SUBJECT = re.compile(r"^Train (?P<model>\S+) on (?P<dataset>\S+)$")
_BEGINNING = re.compile(r"^(?P<indent>[ \t]*(?:[*-] )?)Train \S+ on \S+$")
_RELEASE = re.compile(r"^Release (?P<model>\S+) v(?P<version>\S+)$")
_TRAILER = re.compile(r"^(?P<key>[A-Z][A-Za-z]*(?:-[A-Z][A-Za-z]*)*): (?P<value>.+)$")
_ITEM = re.compile(r"^- (?P<key>[^:\s]+): (?P<value>.+)$")
_PLAIN = re.compile(r'[^\s"\x00-\x1f\x7f](?:[ -~]*[!-~])?')


class Comparison(Record):
    """A metric held against the champion's on the same test items."""

    champion: str = Field(min_length=1, description="Version compared with.")
    delta: float = Field(description="Mean paired difference to the champion, metric units.")
    interval: tuple[float, float] = Field(description="Confidence interval of delta.")


class ExperimentRecord(Record):
    """One finished training, as its commit and its tag tell it."""

    model: Name
    dataset: Name
    hyperparameters: dict[Key, JsonValue] = Field(default_factory=dict)
    hardware: str = Field(default="", description="Such as 4x A100.")
    performance: dict[Key, float] = Field(default_factory=dict, description="Metric -> value.")
    comparisons: dict[Key, Comparison] = Field(default_factory=dict, description="Metric -> beside the champion's.")
    version: str = Field(default="", description="Number in the registry; empty where it was not registered.")
    run_id: str = Field(min_length=1)
    date: str = Field(default="", description="Day of the run, such as 2026-05-01; empty in records of older releases.")
    branch: str = Field(default="", description="Branch or tag the run was of; empty in records of older releases.")
    dataset_version: Digest
    manifest: Digest = Field(description="Fingerprint of the RunManifest.")
    tracker_url: str = ""


class ReleaseRecord(Record):
    """A released version, as its annotated tag tells it."""

    model: Name
    version: SemVer
    bundle: Digest
    metrics: dict[Key, float] = Field(default_factory=dict)
    run_id: str = ""
    dataset_version: str = ""
    manifest: str = ""
    approved_by: str = ""


def experiment_message(record: ExperimentRecord) -> str:
    """Return the message of the experiment's commit and tag."""
    blocks = [f"Train {record.model} on {record.dataset}"]
    blocks += _section("Hyperparameters", record.hyperparameters)
    blocks += [f"Hardware: {_text(record.hardware)}"] if record.hardware else []
    blocks += _section("Performance", record.performance)
    blocks += _section("Comparisons", {key: one.model_dump(mode="json") for key, one in record.comparisons.items()})
    trailers = {
        "Version": record.version,
        "Run-Id": record.run_id,
        "Run-Date": record.date,
        "Branch": record.branch,
        "Dataset-Version": record.dataset_version,
        "Manifest": record.manifest,
        "Tracker-Url": record.tracker_url,
    }
    return "\n\n".join([*blocks, _trailers(trailers)]) + "\n"


def parse_experiment(message: str) -> ExperimentRecord | None:
    """Return the record an experiment's message was written from, or None for any other message."""
    subject, sections, trailers = _read(message)
    match = _SUBJECT.match(subject)
    if match is None:
        return None
    try:
        return ExperimentRecord.model_validate(
            {
                "model": match["model"],
                "dataset": match["dataset"],
                "hyperparameters": sections.get("Hyperparameters", {}),
                "hardware": trailers.get("Hardware", ""),
                "performance": sections.get("Performance", {}),
                "comparisons": sections.get("Comparisons", {}),
                "version": trailers.get("Version", ""),
                "run_id": trailers.get("Run-Id", ""),
                "date": trailers.get("Run-Date", ""),
                "branch": trailers.get("Branch", ""),
                "dataset_version": trailers.get("Dataset-Version", ""),
                "manifest": trailers.get("Manifest", ""),
                "tracker_url": trailers.get("Tracker-Url", ""),
            }
        )
    except ValidationError:
        return None


def parse_experiments(text: str) -> list[ExperimentRecord]:
    """Return every record in a text, each once, in order: a squash merge indents or lists them, a note has blocks."""
    lines = text.replace("\r\n", "\n").split("\n")
    starts = [(at, match["indent"]) for at, line in enumerate(lines) if (match := _BEGINNING.match(line.rstrip()))]
    found: list[ExperimentRecord] = []
    for (start, indent), (end, _) in itertools.pairwise([*starts, (len(lines), "")]):
        own = [line.lstrip(" \t") if indent else line for line in lines[start:end]]
        own[0] = lines[start][len(indent) :]
        record = parse_experiment("\n".join(_up_to_the_end(own)))
        if record is not None and record not in found:
            found.append(record)
    return found


def _up_to_the_end(lines: list[str]) -> list[str]:
    """Return the lines of the first record: after the paragraph with its trailers another text begins."""
    complete = False
    for at, line in enumerate(lines):
        complete = complete or line.startswith("Manifest: ")
        if complete and not line.strip():
            return lines[:at]
    return lines


def release_message(record: ReleaseRecord) -> str:
    """Return the message of the release's annotated tag; ``Metrics`` holds all of them as one line of JSON."""
    blocks = [f"Release {record.model} v{record.version}", *_section("Performance", record.metrics)]
    trailers = {
        "Bundle": record.bundle,
        "Run-Id": record.run_id,
        "Dataset-Version": record.dataset_version,
        "Manifest": record.manifest,
        "Approved-By": record.approved_by,
    }
    metrics = f"Metrics: {json.dumps(record.metrics, sort_keys=True)}"
    return "\n\n".join([*blocks, f"{_trailers(trailers)}\n{metrics}"]) + "\n"


def parse_release(message: str) -> ReleaseRecord | None:
    """Return the record a release's message was written from, or None for any other message."""
    subject, _, trailers = _read(message)
    match = _RELEASE.match(subject)
    if match is None:
        return None
    try:
        return ReleaseRecord.model_validate(
            {
                "model": match["model"],
                "version": match["version"],
                "bundle": trailers.get("Bundle", ""),
                "metrics": _value(trailers.get("Metrics", "{}")),
                "run_id": trailers.get("Run-Id", ""),
                "dataset_version": trailers.get("Dataset-Version", ""),
                "manifest": trailers.get("Manifest", ""),
                "approved_by": trailers.get("Approved-By", ""),
            }
        )
    except ValidationError:
        return None


def experiment_tag(date: dt.date, what: str) -> str:
    """Return ``exp-YYYYMMDD-<what>`` with ``what`` made safe for a ref and a path; equal input, equal tag."""
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", what)
    slug = re.sub(r"([._-])[._-]+", r"\1", slug).strip("._-")[:60].strip("._-")
    return f"exp-{date:%Y%m%d}-{slug.removesuffix('.lock') or 'run'}"


def _section(title: str, values: Mapping[str, JsonValue]) -> list[str]:
    lines = [f"- {key}: {json.dumps(value, sort_keys=True)}" for key, value in sorted(values.items())]
    return ["\n".join([f"{title}:", *lines])] if lines else []


def _trailers(values: Mapping[str, str]) -> str:
    return "\n".join(f"{key}: {_text(value)}" for key, value in values.items() if value)


def _text(value: str) -> str:
    """Return one line of text: as it stands where that is unmistakable, else as a JSON string."""
    return value if _PLAIN.fullmatch(value) else json.dumps(value)


def _read(message: str) -> tuple[str, dict[str, dict[str, JsonValue]], dict[str, str]]:
    """Return subject, sections and trailers; lines of another shape are somebody else's and skipped."""
    lines = [line.rstrip() for line in message.replace("\r\n", "\n").split("\n")]
    sections: dict[str, dict[str, JsonValue]] = {}
    trailers: dict[str, str] = {}
    section: dict[str, JsonValue] | None = None
    for line in lines[1:]:
        if section is not None and (item := _ITEM.match(line)):
            section[item["key"]] = _value(item["value"])
        elif line in _SECTIONS:
            section = sections.setdefault(line.removesuffix(":"), {})
        elif trailer := _TRAILER.match(line):
            section = None
            value = _value(trailer["value"]) if trailer["value"].startswith('"') else trailer["value"]
            trailers.setdefault(trailer["key"], str(value))
        else:
            section = None
    return lines[0], sections, trailers


def _value(text: str) -> JsonValue:
    try:
        value: JsonValue = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value
