"""Evaluation items that training documents hold already.

The measure follows what model reports do: runs of 13 equal words, case and punctuation aside, mark an overlap (Brown
et al., "Language Models are Few-Shot Learners", 2020, appendix C, which takes 8 words as the least and 13 as the most);
because single runs also come from quotations and boilerplate, an item counts as known only when such runs cover a
share of it (Touvron et al., "Llama 2", 2023, appendix A.6, and "The Llama 3 Herd of Models", 2024, section 5.1.4).

An item of fewer words than a run needs *all* of them in a row. One of fewer than ``LEAST_WORDS`` says nothing by its
words ("yes", "2 + 2") and is only counted. Runs are compared by their 64-bit numbers (``words``).
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from deepseek_ops.data.content.words import PIECE_BYTES, WordRuns, pieces, word_runs

if TYPE_CHECKING:
    from numpy import ndarray

LEAST_WORDS = 5
_FILTER_BITS = 24
_HITS_KEPT = 3
"""Documents named per item."""


@dataclass(frozen=True, slots=True)
class Item:
    """One evaluation item."""

    set_name: str
    file: str
    row: int
    id: str
    words: bytes
    shown: str
    """Its text, cut, for the report."""


@dataclass(frozen=True, slots=True)
class KnownItem:
    """An item that training documents hold, and where."""

    item: Item
    share: float
    """Of its words that lie in matching runs."""
    documents: tuple[int, ...]
    """The first documents that hold a run of it."""
    num_documents: int


@dataclass
class _Seen:
    covered: bytearray
    documents: list[int] = field(default_factory=list)
    num_documents: int = 0
    last: int = -1


class ItemIndex:
    """The runs of all evaluation items, and what has been found of them so far.

    An item of more than 256 KiB is judged by its beginning. ``remember`` keeps every (item, document) that meet, for
    callers who leave such documents out.
    """

    def __init__(self, items: Sequence[Item], *, length: int, remember: bool = False) -> None:
        self.items = [replace(item, words=next(pieces(item.words))) for item in items]
        self._words = [item.words.count(b" ") + 1 if item.words else 0 for item in self.items]
        self._tables: dict[int, _Table] = {}
        self._seen: dict[int, _Seen] = {}
        self._met = (array("q"), array("q")) if remember else None
        by_length: dict[int, list[int]] = {}
        for number, count in enumerate(self._words):
            if count >= LEAST_WORDS:
                by_length.setdefault(min(count, length), []).append(number)
        for run_length, numbers in sorted(by_length.items()):
            self._tables[run_length] = _Table([(number, self.items[number].words) for number in numbers], run_length)

    def look(self, documents: Sequence[int], batch: Sequence[bytes]) -> set[int]:
        """Note which runs of items lie in the words of a batch of documents; return the documents that hold any."""
        found: set[int] = set()
        if len(batch) == 1 and len(batch[0]) > PIECE_BYTES:
            for piece in pieces(batch[0]):
                found |= self._look(documents, word_runs([piece]))
        elif batch:
            found = self._look(documents, word_runs(batch))
        return found

    def _look(self, documents: Sequence[int], runs: WordRuns) -> set[int]:
        found = set()
        for length, table in self._tables.items():
            hashes, first = runs.hashes(length)
            for at, row in table.matches(hashes):
                document = documents[int(runs.documents[first[at]])]
                found.add(document)
                for number, position in table.places(row):
                    self._note(number, position, length, document)
        return found

    def _note(self, number: int, position: int, length: int, document: int) -> None:
        seen = self._seen.get(number)
        if seen is None:
            seen = self._seen[number] = _Seen(bytearray(self._words[number]))
        seen.covered[position : position + length] = b"\1" * length
        if seen.last != document:
            seen.last = document
            seen.num_documents += 1
            if self._met is not None:
                self._met[0].append(number)
                self._met[1].append(document)
            if len(seen.documents) < _HITS_KEPT:
                seen.documents.append(document)

    def figures(self) -> dict[str, Counter[str]]:
        """Return per set: ``items``, ``touched`` (a run of it was found) and ``too_short`` to be judged by words."""
        counts: dict[str, Counter[str]] = {}
        for number, item in enumerate(self.items):
            one = counts.setdefault(item.set_name, Counter(items=0, touched=0, too_short=0))
            one["items"] += 1
            one["touched"] += number in self._seen
            one["too_short"] += self._words[number] < LEAST_WORDS
        return counts

    def known(self, share: float) -> Iterator[tuple[int, KnownItem]]:
        """Yield (number, item) of those that are covered to at least this share (0..1), in the order given."""
        for number in sorted(self._seen):
            seen = self._seen[number]
            covered = sum(seen.covered) / len(seen.covered)
            if covered >= share:
                yield number, KnownItem(self.items[number], covered, tuple(seen.documents), seen.num_documents)

    def holders(self, share: float) -> Iterator[int]:
        """Yield the documents that hold a run of a known item; only with ``remember``."""
        numbers = {number for number, seen in self._seen.items() if sum(seen.covered) / len(seen.covered) >= share}
        for number, document in zip(*self._met, strict=True) if self._met else ():
            if number in numbers:
                yield document


class _Table:
    """Sorted hashes of the runs of one length, where each lies, and a bitmap that most lookups end at."""

    def __init__(self, items: Sequence[tuple[int, bytes]], length: int) -> None:
        import numpy as np

        hashes, numbers, positions = [], array("q"), array("q")
        for number, words in items:
            found, first = word_runs([words]).hashes(length)
            hashes.append(found)
            numbers.extend([number] * len(found))
            positions.extend(first.tolist())
        joined = np.concatenate(hashes)
        order = np.argsort(joined, kind="stable")
        self._hashes: ndarray = joined[order]
        self._numbers = np.frombuffer(numbers, np.int64)[order]
        self._positions = np.frombuffer(positions, np.int64)[order]
        self._filter: ndarray = np.zeros(1 << _FILTER_BITS, bool)
        self._filter[joined >> np.uint64(64 - _FILTER_BITS)] = True

    def matches(self, hashes: ndarray) -> Iterator[tuple[int, int]]:
        """Yield (index into ``hashes``, row of this table) of those that are in the table."""
        import numpy as np

        maybe = np.flatnonzero(self._filter[hashes >> np.uint64(64 - _FILTER_BITS)])
        rows: ndarray = np.asarray(np.searchsorted(self._hashes, hashes[maybe]))
        rows[rows == len(self._hashes)] = 0
        equal = self._hashes[rows] == hashes[maybe]
        yield from zip(maybe[equal].tolist(), rows[equal].tolist(), strict=True)

    def places(self, row: int) -> Iterator[tuple[int, int]]:
        """Yield (item, first word) of every run with the hash of this row."""
        value = self._hashes[row]
        while row < len(self._hashes) and self._hashes[row] == value:
            yield int(self._numbers[row]), int(self._positions[row])
            row += 1
