"""From what a survey and the profiles found to findings: which limits are passed, by how much, and where."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from deepseek_ops.core.config.data_checks import DataChecks
from deepseek_ops.core.errors import PermanentError
from deepseek_ops.data.content.contamination import Item
from deepseek_ops.data.content.findings import Example, Finding, shown
from deepseek_ops.data.content.profile import SplitProfile, drift
from deepseek_ops.data.content.rows import Row, text_of
from deepseek_ops.data.content.survey import ITEM_BASE, Reason, Surveyed, example_of, named
from deepseek_ops.data.content.words import words_of

Rows = Callable[[], Iterable[Row]]
_EMPTY_ROW = Row("", 0, None)


@dataclass(eq=False)
class EmptyEvaluationSetError(PermanentError):
    """A gate against nothing would pass."""

    name: str

    def __str__(self) -> str:
        return (
            f"evaluation set {self.name} holds no record that can be read; give JSON lines (.jsonl), .parquet or .txt, "
            "and correct data.checks.contamination.against."
        )


def evaluation_items(set_name: str, rows: Iterable[Row], fields: tuple[str, ...] = ()) -> Iterator[Item]:
    """Yield the items of an evaluation set; a row that cannot be read is no item. Raises EmptyEvaluationSetError."""
    count = 0
    for row in rows:
        if row.problem:
            continue
        text = text_of(row.value, fields)
        named_row = example_of(row)
        count += 1
        yield Item(set_name, row.file, row.row, named_row.id, words_of(text), shown(text))
    if not count:
        raise EmptyEvaluationSetError(set_name)


def survey_findings(found: Surveyed, checks: DataChecks, rows: Rows, *, drops: bool) -> list[Finding]:
    """Return what the survey found. ``rows`` reads the records again, for the places of documents in examples.

    ``drops`` says whether the caller leaves documents out; one that cannot is blocked by what would have to go.
    """
    if not drops:
        checks = _blocking(checks)
    findings = [
        *_unreadable(found),
        *_schema(found, checks),
        *_quality(found, checks),
        *_shares(found, checks),
    ]
    wanted = {number for pair in found.leaks for number in pair}
    wanted |= {number for pair in found.near_pairs[: checks.examples] for number in (pair.first, pair.second)}
    for name in found.sets:
        wanted |= {document for _, documents, _ in _hits(found, name)[: checks.examples] for document in documents}
    places = named(rows(), wanted)
    return [
        *findings,
        *_leaks(found, checks, places, drops=drops),
        *_near_leaks(found, checks, places),
        *_contamination(found, checks, places),
    ]


def _unreadable(found: Surveyed) -> Iterator[Finding]:
    tally = found.tallies.get("unreadable")
    if tally is not None:
        problem = f"{tally.count} of {found.documents} records cannot be read."
        remedy = 'Write one {"id": "...", "text": "..."} per line, in UTF-8.'
        yield Finding(
            check="unreadable", action="block", count=tally.count, problem=problem, remedy=remedy,
            examples=tuple(tally.examples),
        )  # fmt: skip


def _schema(found: Surveyed, checks: DataChecks) -> Iterator[Finding]:
    for name, tally in sorted(found.tallies.items()):
        if name.startswith("schema."):
            yield Finding(
                check=name,
                action=checks.schema_.action,
                count=tally.count,
                problem=f"{tally.count} of {found.documents} records break the rule.",
                remedy=tally.remedy,
                examples=tuple(tally.examples),
            )


def _quality(found: Surveyed, checks: DataChecks) -> Iterator[Finding]:
    quality = checks.quality
    rules = (
        ("quality.empty", quality.max_empty, "hold no letter or digit", "Leave them out in prepare."),
        ("quality.control", quality.max_control, "hold control characters", "Remove these characters in prepare."),
        ("quality.replacement", quality.max_replacement, "hold U+FFFD", "Decode the raw data with its own encoding."),
        ("quality.pii", quality.max_pii if quality.pii else None, "match a pattern of personal data", "Mask them."),
    )
    for name, limit, what, remedy in rules:
        tally = found.tallies.get(name)
        if limit is not None and tally is not None and 100 * tally.count > limit * found.documents:
            share = 100 * tally.count / found.documents
            yield Finding(
                check=name,
                action=quality.action,
                count=tally.count,
                problem=f"{tally.count} of {found.documents} documents ({share:.2g}%) {what}; {limit:g}% may.",
                remedy=remedy,
                examples=tuple(tally.examples),
            )


def _shares(found: Surveyed, checks: DataChecks) -> Iterator[Finding]:
    exact = found.reasons.count(Reason.DUPLICATE)
    for name, share, limit in (
        ("duplicates.exact", exact / max(found.documents, 1), checks.duplicates.max_exact),
        ("duplicates.near", found.near_share, checks.duplicates.max_near),
    ):
        if limit is not None and share is not None and share * 100 > limit:
            yield Finding(
                check=name,
                action="block",
                count=round(share * found.documents),
                problem=f"{share:.1%} of the documents repeat an earlier one; {limit:g}% may.",
                remedy="Remove repeats from the raw data, or raise the limit.",
            )


def _blocking(checks: DataChecks) -> DataChecks:
    duplicates, contamination = checks.duplicates, checks.contamination
    changed = {
        "duplicates": duplicates.model_copy(update={"near": "block"}) if duplicates.near == "drop" else duplicates,
        "contamination": contamination.model_copy(update={"action": "block"})
        if contamination.action == "drop"
        else contamination,
    }
    return checks.model_copy(update=changed)


def _leaks(found: Surveyed, checks: DataChecks, places: Mapping[int, Row], *, drops: bool) -> Iterator[Finding]:
    count = found.reasons.count(Reason.LEAK)
    action = checks.duplicates.near
    if not count or (action == "off" and not drops):
        return
    examples = []
    for number, first in found.leaks:
        row, other = places.get(number, _EMPTY_ROW), places.get(first, _EMPTY_ROW)
        problem = f"equals {other.file}, line {other.row}"
        examples.append(example_of(row, problem=problem, value=shown(text_of(row.value), 60)))
    yield Finding(
        check="duplicates.leak",
        action="dropped" if drops or action in ("drop", "off") else action,
        count=count,
        problem=f"{count} documents equal one of another split, case and spacing aside.",
        remedy="Nothing to do." if drops else "Remove them from one of the splits.",
        examples=tuple(examples),
    )


def _near_leaks(found: Surveyed, checks: DataChecks, places: Mapping[int, Row]) -> Iterator[Finding]:
    action = checks.duplicates.near
    if not found.near_leaks or action == "off":
        return
    examples = []
    for pair in found.near_pairs[: checks.examples]:
        first, second = places.get(pair.first, _EMPTY_ROW), places.get(pair.second, _EMPTY_ROW)
        problem = f"{pair.similarity:.0%} like {second.file}, line {second.row}"
        examples.append(example_of(first, problem=problem, value=shown(text_of(first.value), 60)))
    yield Finding(
        check="duplicates.near_leak",
        action="dropped" if action == "drop" else action,
        count=found.near_leaks,
        problem=f"{found.near_leaks} documents nearly equal one of another split "
        f"(Jaccard >= {checks.duplicates.threshold:g}% of 5-word shingles).",
        remedy="Nothing to do." if action == "drop" else "Set data.checks.duplicates.near: drop, or remove them.",
        examples=tuple(examples),
    )


def _hits(found: Surveyed, name: str) -> list[tuple[Item, tuple[int, ...], str]]:
    """Return (item, documents, how it is known) of the known items of a set."""
    hits = []
    for number, item in enumerate(found.items):
        if item.set_name != name:
            continue
        known, pair = found.known.get(number), found.similar_items.get(number)
        if known is not None:
            how = f"{known.share:.0%} of its words are in {known.num_documents} training documents"
            hits.append((item, known.documents, how))
        elif pair is not None:
            document = pair.first if pair.first < ITEM_BASE else pair.second
            hits.append((item, (document,), f"a training document is {pair.similarity:.0%} like it"))
    return hits


def _contamination(found: Surveyed, checks: DataChecks, places: Mapping[int, Row]) -> Iterator[Finding]:
    rules = checks.contamination
    for name, figures in found.sets.items():
        hits = _hits(found, name)
        if 100 * len(hits) <= rules.max_items * figures["items"]:
            continue
        examples = []
        for item, documents, how in hits[: checks.examples]:
            rows = [places[number] for number in documents if number in places]
            where = ", ".join(f"{row.file} line {row.row}" for row in rows)
            problem = f"{how}: {where}"
            examples.append(Example(file=item.file, row=item.row, id=item.id, value=item.shown, problem=problem))
        yield Finding(
            check=f"contamination.{name}",
            action="dropped" if rules.action == "drop" else rules.action,
            count=len(hits),
            problem=f"training data holds {len(hits)} of the {figures['items']} items "
            f"({rules.ngram}-word runs over at least {rules.share:g}% of an item, or nearly equal).",
            remedy="Nothing to do." if rules.action == "drop" else "Remove these documents, or use action: drop.",
            examples=tuple(examples),
        )


def profile_findings(
    profiles: Mapping[str, SplitProfile], dumped: Mapping[str, JsonValue], before: Mapping[str, JsonValue],
    checks: DataChecks,
) -> list[Finding]:  # fmt: skip
    """Return what the kept documents of each split show; ``before`` holds the profiles of the version before."""
    quality = checks.quality
    findings = []
    kept = sum(profile.documents for profile in profiles.values())
    if quality.min_documents is not None and kept < quality.min_documents:
        problem = f"{kept} documents are left; at least {quality.min_documents} are asked for."
        remedy = "Give prepare more raw data."
        findings.append(_finding("quality.min_documents", quality.action, kept, problem, remedy))
    for split, body in dumped.items():
        if not isinstance(body, dict):
            continue
        languages = body.get("languages")
        if quality.languages and isinstance(languages, dict) and languages:
            share = 100 * sum(float(str(languages.get(name, 0))) for name in quality.languages)
            if share < quality.min_languages:
                met = ", ".join(f"{name} {float(str(part)):.0%}" for name, part in list(languages.items())[:5])
                problem = f"{share:.1f}% of {split} are in {', '.join(quality.languages)} ({met})."
                remedy = f"At least {quality.min_languages:g}% must be; filter by language in prepare."
                findings.append(_finding("quality.languages", quality.action, 1, problem, remedy))
        old = before.get(split)
        moved = drift(old, body).get("ks") if isinstance(old, dict) else None
        if quality.max_drift is not None and moved is not None and float(str(moved)) > quality.max_drift:
            problem = f"lengths of {split} moved by {moved} (Kolmogorov-Smirnov) since the version before."
            remedy = f"Up to {quality.max_drift:g} may; look at `data diff --records`, or raise the limit."
            findings.append(_finding("quality.drift", quality.action, 1, problem, remedy))
    return findings


def _finding(check: str, action: str, count: int, problem: str, remedy: str) -> Finding:
    body = {"check": check, "action": action, "count": count, "problem": problem, "remedy": remedy}
    return Finding.model_validate(body)
