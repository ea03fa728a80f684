"""From documents and a tokenizer to the files of a dataset version.

::

    documents/<split>.jsonl         {"id", "text"} and declared fields, for evaluation and for people;
    documents/<split>-00001.jsonl   goes on there after 64 MiB
    tokens/<split>-00000.bin        see ``deepseek_ops.jobs.tokens``
    conversations/<split>-00000.ids of documents with ``messages``: see ``deepseek_ops.jobs.conversations``
    tokenizer/                      as the model repository made it
    report.json, report.html        counts, findings, what each split looks like

Documents are read twice, one at a time: the survey says which ones stay, then those are written. A document's split is
decided by its content, so adding data moves nothing from train to test. Equal documents are left out; one that equals
one of *another* split but for case and spacing would leak it, and is left out from wherever it comes second; one that
nearly equals one of another split goes from the less protected split (train before val before test).
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import JsonValue

from deepseek_ops.core.config import DataChecks
from deepseek_ops.core.errors import PermanentError
from deepseek_ops.data.content import ContentReport, DataGateError, Finding
from deepseek_ops.data.content.contamination import Item
from deepseek_ops.data.content.examine import figures
from deepseek_ops.data.content.page import report_page
from deepseek_ops.data.content.profile import SplitProfile
from deepseek_ops.data.content.rows import Row, read_rows
from deepseek_ops.data.content.survey import Reason, Survey, Surveyed
from deepseek_ops.data.content.verdict import profile_findings, survey_findings
from deepseek_ops.data.split import assign_split
from deepseek_ops.jobs.chat import MESSAGES, messages_problem, transcript
from deepseek_ops.jobs.prepare_files import SHARD_BYTES, SplitFiles
from deepseek_ops.jobs.prepare_tokenizer import load_tokenizer
from deepseek_ops.jobs.training_data import TOKENIZER

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SOURCES = ("documents.jsonl", "documents-*.jsonl")
_PROTECTION = ("train", "val", "test")


@dataclass(eq=False)
class EmptyDatasetError(PermanentError):
    """Nothing to train on came out."""

    split: str

    def __str__(self) -> str:
        return f"the {self.split} split got no document; give prepare more raw data, or a larger share to the split."


@dataclass(eq=False)
class MissingDocumentsError(PermanentError):
    """The callable wrote no documents."""

    def __str__(self) -> str:
        return (
            "documents.jsonl, line 0: the callable did not write the file; "
            "write it or documents-00000.jsonl and so on, or yield documents."
        )


@dataclass(frozen=True)
class Prepared:
    """What was written, and the verdict on it."""

    report: dict[str, JsonValue]
    """Counts, as in ``report.json``."""
    own: ContentReport
    """The verdict on the data alone, as stored with it."""
    content: ContentReport
    """The verdict that also compares with the version before."""
    profiles: dict[str, JsonValue]


@dataclass
class Counts:
    """What was written."""

    characters: int = 0
    by_split: Counter[str] = field(default_factory=Counter)


def write_dataset(
    source: Path,
    target: Path,
    shares: Mapping[str, float],
    *,
    dataset: str = "",
    tokenizer_folder: Path | None = None,
    checks: DataChecks | None = None,
    items: Iterable[Item] = (),
    before: Mapping[str, JsonValue] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Prepared:
    """Write the dataset's folder from what the callable left in ``source`` and return what it came to.

    ``tokenizer_folder`` holds a ready tokenizer, if it is not in ``source``; ``items`` are evaluation items that
    training must not hold; ``before`` are the profiles of the version before, which decide the verdict and are not
    written; from ``shard_bytes`` on the documents of a split go on in another file.

    Raises:
        DataGateError: A check that blocks failed, a line that is no document among them; the report is in it.
        MissingDocumentsError, MissingTokenizerError: The callable left none.
        EmptyDatasetError: A split with a share got no document.
    """
    checks = checks or DataChecks()
    tokenizer_folder = tokenizer_folder or source / TOKENIZER
    tokenizer, end = load_tokenizer(tokenizer_folder)
    target.mkdir(parents=True)
    shutil.copytree(tokenizer_folder, target / TOKENIZER)
    splits = sorted((name for name, share in shares.items() if share > 0), key=_protection)
    found = _surveyed(source, target.parent / "survey", shares, splits, checks, items)
    findings = survey_findings(found, checks, lambda: source_rows(source), drops=True)
    _gate(dataset, findings, found)
    profiles = {name: SplitProfile() for name in splits}
    counts = Counts()
    always = ("id", "text", MESSAGES)
    fields = (*always, *(name for name in checks.schema_.fields if name not in always))
    with SplitFiles(target, splits, tokenizer, end, profiles, fields, shard_bytes) as files:
        for number, row in enumerate(source_rows(source)):
            if found.kept(number) and isinstance(row.value, dict):
                text = str(row.value["text"])
                split = _split_of(shares)(row, text)
                files.add(split, row.value)
                counts.characters += len(text)
                counts.by_split[split] += 1
    for name in splits:
        if not counts.by_split.get(name):
            raise EmptyDatasetError(name)
    return _reported(target, dataset, found, findings, checks, profiles, before or {}, files, counts, tokenizer)


def _reported(
    target: Path, dataset: str, found: Surveyed, findings: list[Finding], checks: DataChecks,
    profiles: Mapping[str, SplitProfile], before: Mapping[str, JsonValue], files: SplitFiles, counts: Counts,
    tokenizer: Tokenizer,
) -> Prepared:  # fmt: skip
    """Write the report, which depends on the input only, and return it with a verdict that knows the version before."""
    dumped: dict[str, JsonValue] = {name: profile.dump() for name, profile in profiles.items()}
    own = ContentReport.of([*findings, *profile_findings(profiles, dumped, {}, checks)], figures(found))
    everything = [*findings, *profile_findings(profiles, dumped, before, checks)]
    content = _gate(dataset, everything, found)
    report = _counted(counts, files, tokenizer.get_vocab_size(), found)
    stored = {**report, "checks": own.dump(), "profiles": dumped}
    (target / "report.json").write_text(json.dumps(stored, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    (target / "report.html").write_text(report_page(dataset, own, dumped), encoding="utf-8")
    return Prepared(report, own, content, dumped)


def _gate(dataset: str, findings: list[Finding], found: Surveyed) -> ContentReport:
    report = ContentReport.of(findings, figures(found))
    if report.verdict == "block":
        raise DataGateError(dataset, report)
    return report


def _surveyed(
    source: Path, scratch: Path, shares: Mapping[str, float], splits: Sequence[str], checks: DataChecks,
    items: Iterable[Item],
) -> Surveyed:  # fmt: skip
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        survey = Survey(checks, scratch, splits=splits, items=items, contract=_contract)
        split_of = _split_of(shares)
        for row in source_rows(source):
            survey.add(row, split_of)
        return survey.finish()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _split_of(shares: Mapping[str, float]) -> Callable[[Row, str], str]:
    def split(_row: Row, text: str) -> str:
        return assign_split(sha256(text.encode()).hexdigest(), shares)

    return split


def _protection(split: str) -> tuple[int, str]:
    return (_PROTECTION.index(split) if split in _PROTECTION else len(_PROTECTION), split)


def _contract(value: JsonValue) -> str:
    if isinstance(value, dict) and MESSAGES in value and (problem := messages_problem(value[MESSAGES])):
        return problem
    if isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("id", "text")):
        return ""
    return "it lacks an id or a text that is a string"


def source_rows(source: Path) -> Iterator[Row]:
    """Yield the documents that the callable left, one in memory at a time. Raises MissingDocumentsError.

    A conversation without a ``text`` of its own gets its transcript as one: what checks compare and people read.
    """
    paths = [path for pattern in SOURCES for path in sorted(source.glob(pattern)) if path.is_file()]
    if not paths:
        raise MissingDocumentsError
    for path in paths:
        with path.open("rb") as lines:
            yield from map(_with_text, read_rows(path.name, lines))


def _with_text(row: Row) -> Row:
    value = row.value
    if not isinstance(value, dict) or MESSAGES not in value or "text" in value:
        return row
    messages = value[MESSAGES]
    if messages_problem(messages) or not isinstance(messages, list):
        return row
    text = transcript([message for message in messages if isinstance(message, dict)])
    return replace(row, value={**value, "text": text})


def _counted(counts: Counts, files: SplitFiles, vocab_size: int, found: Surveyed) -> dict[str, JsonValue]:
    tokens = {name: writer.num_tokens for name, writer in files.tokens.items()}
    total = sum(tokens.values())
    chats = sorted(files.conversations.items())
    conversations: dict[str, JsonValue] = {
        "conversations_by_split": {name: writer.num_conversations for name, writer in chats},
        "answer_tokens_by_split": {name: writer.num_answer_tokens for name, writer in chats},
        "chat_template": "the tokenizer's" if files.own_template else "DeepSeek-V3's turns, added to the tokenizer",
    }
    return {
        **(conversations if chats else {}),
        "documents": sum(counts.by_split.values()),
        "documents_by_split": dict(sorted(counts.by_split.items())),
        "tokens": total,
        "tokens_by_split": dict(sorted(tokens.items())),
        "characters": counts.characters,
        "characters_per_token": round(counts.characters / max(total, 1), 4),
        "dropped_duplicates": found.reasons.count(Reason.DUPLICATE),
        "dropped_leaks": found.reasons.count(Reason.LEAK),
        "dropped_near_leaks": found.reasons.count(Reason.NEAR_LEAK),
        "dropped_contaminated": found.reasons.count(Reason.CONTAMINATED),
        "vocab_size": vocab_size,
    }
