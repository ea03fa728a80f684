"""The checks of a pipeline file on records that lie somewhere already: a folder, or a stored version."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from deepseek_ops.core.config.data_checks import DataChecks
from deepseek_ops.data.content.contamination import Item
from deepseek_ops.data.content.findings import ContentReport
from deepseek_ops.data.content.identity import count_words
from deepseek_ops.data.content.languages import require_languages
from deepseek_ops.data.content.profile import SplitProfile
from deepseek_ops.data.content.rows import Row, text_of
from deepseek_ops.data.content.survey import Survey, Surveyed
from deepseek_ops.data.content.verdict import Rows, profile_findings, survey_findings
from deepseek_ops.data.content.version_files import split_of

SPLITS = ("train", "val", "test")
"""Least protected first: of two nearly equal documents the one whose split comes earlier would go."""


@dataclass(frozen=True)
class Examined:
    """The report on a dataset, and the profile of each split to store with it."""

    report: ContentReport
    profiles: dict[str, JsonValue]


def examine(
    rows: Rows,
    checks: DataChecks,
    *,
    items: Iterable[Item] = (),
    before: Mapping[str, JsonValue] | None = None,
    fields: Sequence[str] = (),
) -> Examined:
    """Return the verdict on records and their profiles. ``rows`` reads them, and is called up to three times.

    Args:
        rows: Returns an iterator over the records; the split of each is what its file's path names, else train.
        items: Evaluation items that the training split must not hold.
        before: Profiles of the version before, for drift.
        fields: Fields that make a record's text; none = ``text``, or every text.
    """
    require_languages()
    with tempfile.TemporaryDirectory(prefix="deepseek-ops-check-") as folder:
        survey = Survey(checks, Path(folder), splits=SPLITS, items=items, fields=fields)
        for row in rows():
            survey.add(row, _split_of)
        found = survey.finish()
        findings = survey_findings(found, checks, rows, drops=False)
    profiles = _profiles(rows, found, fields)
    dumped: dict[str, JsonValue] = {name or "all": profile.dump() for name, profile in profiles.items()}
    findings += profile_findings(profiles, dumped, before or {}, checks)
    return Examined(ContentReport.of(findings, figures(found)), dumped)


def figures(found: Surveyed) -> dict[str, JsonValue]:
    """Return the counts behind a report."""
    sets: dict[str, JsonValue] = {}
    for name, counts in found.sets.items():
        numbers = {number for number, item in enumerate(found.items) if item.set_name == name}
        hit = len(numbers & (found.known.keys() | found.similar_items.keys()))
        sets[name] = {**counts, "known": hit}
    met: dict[str, JsonValue] = {name: tally.count for name, tally in sorted(found.tallies.items())}
    left_out: dict[str, JsonValue] = dict(found.left_out())
    body: dict[str, JsonValue] = {
        "records": found.documents,
        "left_out": left_out,
        "met": met,
        "near_leaks": found.near_leaks,
        "evaluation_sets": sets,
    }
    if found.near_share is not None:
        body["near_share"] = round(found.near_share, 6)
    return body


def _split_of(row: Row, _text: str) -> str:
    return split_of(row.file) or SPLITS[0]  # what is not held out may be trained on


def _profiles(rows: Rows, found: Surveyed, fields: Sequence[str]) -> dict[str, SplitProfile]:
    profiles: dict[str, SplitProfile] = {}
    for number, row in enumerate(rows()):
        if found.kept(number):
            text = text_of(row.value, fields)
            profile = profiles.setdefault(split_of(row.file), SplitProfile())
            profile.add(text, count_words([text])[0])
    return profiles
