"""One pass over the records of a dataset: what must be left out, what is wrong, what leaks.

The survey takes one record at a time and keeps digests, signatures and counts on disk, so a dataset may be larger than
memory: what stays is some ten bytes per document. ``finish`` gives the answer; the caller then reads the records a
second time and writes those that are ``kept``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from pydantic import JsonValue

from deepseek_ops.core.config.data_checks import DataChecks
from deepseek_ops.data.content.contamination import Item, ItemIndex, KnownItem
from deepseek_ops.data.content.equal import EqualDocuments
from deepseek_ops.data.content.extras import require
from deepseek_ops.data.content.findings import Example, shown
from deepseek_ops.data.content.quality import CONTROL, REPLACEMENT, pii_in
from deepseek_ops.data.content.rows import Row, text_of
from deepseek_ops.data.content.schema import RecordRules
from deepseek_ops.data.content.similar import Pair, SimilarDocuments
from deepseek_ops.data.content.words import PIECE_BYTES, words_of

ITEM_BASE = 1 << 40
"""Evaluation items have numbers from here on."""
_ITEM_GROUP = 200
MAX_SPLITS = 100
_EXAMPLE_PAIRS = 10_000
"""Similar pairs that are kept for the report; all are counted."""


class Reason(IntEnum):
    """Why a document is left out; 0 = it is kept."""

    KEPT = 0
    UNREADABLE = 1
    EMPTY = 2
    DUPLICATE = 3
    LEAK = 4
    NEAR_LEAK = 5
    CONTAMINATED = 6


_GONE = (Reason.DUPLICATE, Reason.LEAK, Reason.UNREADABLE, Reason.EMPTY)


@dataclass
class Tally:
    """How often something was met, and the first places."""

    count: int = 0
    problem: str = ""
    remedy: str = ""
    examples: list[Example] = field(default_factory=list)

    def add(self, example: Callable[[], Example], limit: int) -> None:
        self.count += 1
        if len(self.examples) < limit:
            self.examples.append(example())


@dataclass
class Surveyed:
    """What the survey found. Documents are named by their number in the order they came, from 0."""

    documents: int
    reasons: bytearray
    tallies: dict[str, Tally]
    items: list[Item]
    leaks: list[tuple[int, int]] = field(default_factory=list)
    """Some documents that equal one of another split but for case and spacing, and that one."""
    near_pairs: list[Pair] = field(default_factory=list)
    """Leaks between splits, the first ten thousand."""
    near_leaks: int = 0
    """Documents that would have to go for no two splits to hold nearly equal ones."""
    near_share: float | None = None
    """Share of documents that nearly equal an earlier one; None when only leaks were looked for."""
    known: dict[int, KnownItem] = field(default_factory=dict)
    """Evaluation items of which runs of words were found, by number."""
    similar_items: dict[int, Pair] = field(default_factory=dict)
    """Evaluation items that a training document nearly equals, by number."""
    sets: dict[str, Counter[str]] = field(default_factory=dict)
    """Per evaluation set: items, touched, too_short."""

    def kept(self, number: int) -> bool:
        return self.reasons[number] == Reason.KEPT

    def left_out(self) -> Counter[str]:
        """Return documents by the reason they are left out."""
        return Counter({reason.name.lower(): self.reasons.count(reason) for reason in Reason if reason})


class Survey:
    """Takes the records of a dataset one by one.

    Args:
        checks: What to look for.
        scratch: Empty folder for tables; about 700 bytes per document when near duplicates are looked for.
        splits: Names, least protected first: of two nearly equal documents the one whose split comes earlier goes.
        items: Evaluation items to look for in the first split.
        fields: Fields that make a record's text; none = ``text``, or every text.
        contract: Returns what is wrong with a record that cannot be used at all, or an empty text.
    """

    def __init__(
        self,
        checks: DataChecks,
        scratch: Path,
        *,
        splits: Sequence[str],
        items: Iterable[Item] = (),
        fields: Sequence[str] = (),
        contract: Callable[[JsonValue], str] = lambda _value: "",
    ) -> None:
        require("numpy", "checking datasets")
        self._checks = checks
        self._splits = list(splits)
        self._fields = fields
        self._contract = contract
        self._rules = RecordRules(checks.schema_)
        self._equal = EqualDocuments(scratch)
        duplicates = checks.duplicates
        wants_near = duplicates.near != "off" or duplicates.max_near is not None
        self._similar = SimilarDocuments(scratch, duplicates.threshold / 100) if wants_near else None
        remember = checks.contamination.action == "drop"
        self._index = ItemIndex(list(items), length=checks.contamination.ngram, remember=remember)
        self._batch: list[tuple[int, int, bytes]] = []
        self._held = 0
        self.num_documents = 0
        self._reasons = bytearray()
        self.tallies: dict[str, Tally] = {}
        self._leaks: list[tuple[int, int]] = []
        self._add_items()

    def add(self, row: Row, split_of: Callable[[Row, str], str]) -> None:
        """Take the next record. ``split_of`` says the split of a record and its text."""
        number = self.num_documents
        self.num_documents += 1
        self._reasons.append(Reason.KEPT)
        if problem := row.problem or self._contract(row.value):
            self._reasons[number] = Reason.UNREADABLE
            self._note("unreadable", row, problem=problem)
            return
        for failure in self._rules.failures(row.value):
            self._note(failure.check, row, failure.field, failure.value, failure.problem, failure.remedy)
        text = text_of(row.value, self._fields)
        if not is_unicode(text):
            self._reasons[number] = Reason.UNREADABLE
            self._note("unreadable", row, "text", shown(text), "half of a surrogate pair is no character")
            return
        self._judge(row, text)
        if not text.strip():
            self._reasons[number] = Reason.EMPTY
            return
        split = self._splits.index(split_of(row, text))
        self._equal.add(number, split, text)
        self._queue(number, split, words_of(text))

    def _judge(self, row: Row, text: str) -> None:
        quality = self._checks.quality
        if not any(map(str.isalnum, text)):
            self._note("quality.empty", row, value=shown(text), problem="it has no letter or digit")
        if match := CONTROL.search(text):
            self._note("quality.control", row, value=f"U+{ord(match[0]):04X} at character {match.start()}")
        if REPLACEMENT in text:
            at = text.index(REPLACEMENT)
            self._note("quality.replacement", row, value=shown(text[max(0, at - 20) : at + 20]))
        if quality.pii and (found := pii_in(text, quality.pii)):
            self._note("quality.pii", row, value=found[1], problem=found[0])

    def _note(
        self, check: str, row: Row, field: str = "", value: str = "", problem: str = "", remedy: str = ""
    ) -> None:
        tally = self.tallies.setdefault(check, Tally(problem=problem, remedy=remedy))
        tally.add(lambda: example_of(row, field=field, value=value, problem=problem), self._checks.examples)

    def _add_items(self) -> None:
        for number, item in enumerate(self._index.items):
            self._queue(ITEM_BASE + number, _ITEM_GROUP, item.words)
        self._flush()

    def _queue(self, number: int, group: int, words: bytes) -> None:
        if len(words) > PIECE_BYTES:
            self._flush()
        self._batch.append((number, group, words))
        self._held += len(words)
        if self._held >= PIECE_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._batch and self._similar is not None:
            numbers, groups, words = zip(*self._batch, strict=True)
            self._similar.add(numbers, groups, words)
        trained = [(number, words) for number, group, words in self._batch if group == 0]
        if trained and self._index.items:
            self._index.look([number for number, _ in trained], [words for _, words in trained])
        self._batch, self._held = [], 0

    def finish(self) -> Surveyed:
        """Return what was found. Call it once, after the last record."""
        self._flush()
        self._leave_out_equal()
        share = self._checks.contamination.share / 100
        found = Surveyed(self.num_documents, self._reasons, self.tallies, self._index.items)
        found.sets = self._index.figures()
        found.leaks = self._leaks
        found.known = dict(self._index.known(share))
        if self._checks.contamination.action == "drop":
            for number in self._index.holders(share):
                self._leave_out(number, Reason.CONTAMINATED)
        if self._similar is not None:
            self._look_at_pairs(found, self._similar)
        return found

    def _look_at_pairs(self, found: Surveyed, similar: SimilarDocuments) -> None:
        """Sort nearly equal pairs into repeats of items, leaks between splits, and repeats within one."""
        everywhere = self._checks.duplicates.max_near is not None
        repeats = bytearray(self.num_documents)
        leaking: set[int] = set()
        seen: set[tuple[int, int]] = set()
        for pair in similar.pairs(across=not everywhere):
            low, high = min(pair.first, pair.second), max(pair.first, pair.second)
            if high >= ITEM_BASE:
                self._note_item(found, low, high - ITEM_BASE, pair)
                continue
            if self._reasons[low] in _GONE or self._reasons[high] in _GONE:
                continue
            repeats[high] = 1
            if pair.groups[0] != pair.groups[1]:
                leaking.add(pair.first if pair.groups[0] < pair.groups[1] else pair.second)
                if (low, high) not in seen and len(seen) < _EXAMPLE_PAIRS:
                    seen.add((low, high))
                    found.near_pairs.append(pair)
        found.near_leaks = len(leaking)
        found.near_share = sum(repeats) / max(self.num_documents, 1) if everywhere else None
        if self._checks.duplicates.near == "drop":
            for number in leaking:
                self._leave_out(number, Reason.NEAR_LEAK)

    def _note_item(self, found: Surveyed, document: int, item: int, pair: Pair) -> None:
        group = pair.groups[0] if pair.first == document else pair.groups[1]
        if group != 0 or document >= ITEM_BASE:
            return
        best = found.similar_items.get(item)
        if best is None or pair.similarity > best.similarity:
            found.similar_items[item] = pair
        if self._checks.contamination.action == "drop":
            self._leave_out(document, Reason.CONTAMINATED)

    def _leave_out(self, number: int, reason: Reason) -> None:
        if self._reasons[number] == Reason.KEPT:
            self._reasons[number] = reason

    def _leave_out_equal(self) -> None:
        for number, first, leaks in self._equal.found():
            self._leave_out(number, Reason.LEAK if leaks else Reason.DUPLICATE)
            if leaks and len(self._leaks) < self._checks.examples:
                self._leaks.append((number, first))


def example_of(row: Row, *, field: str = "", value: str = "", problem: str = "") -> Example:
    """Return the place of a record."""
    name = row.value.get("id") if isinstance(row.value, dict) else None
    named = shown(str(name), 60) if isinstance(name, str | int) else ""
    return Example(file=row.file, row=row.row, id=named, field=field, value=value, problem=problem)


def is_unicode(text: str) -> bool:
    """Return whether every character can be written in UTF-8; JSON can spell halves of surrogate pairs."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def named(rows: Iterable[Row], numbers: Iterable[int]) -> dict[int, Row]:
    """Return the records with these numbers, reading no further than the last of them."""
    wanted = set(numbers)
    last = max(wanted, default=-1)
    found: dict[int, Row] = {}
    for number, row in enumerate(rows):
        if number > last:
            break
        if number in wanted:
            found[number] = row
    return found
