"""What changed between two dataset versions, record by record.

Only files that differ are read, each once on either side. A record is known by a declared key (such as ``id``) or by
its content; with a key, another content is a change, without one it is a removal and an addition. Where a record lies
does not matter: a file that was renamed, or cut into other shards, changes nothing but ``moved``.

Memory does not grow with the data: of each record 62 bytes go to disk, and come back grouped by key, part by part.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from deepseek_ops.data.content.diff_records import Amount, RecordDiff, RecordExample, Side, SplitDiff, excerpts
from deepseek_ops.data.content.extras import require
from deepseek_ops.data.content.identity import TokenCount, count_words, identity_of
from deepseek_ops.data.content.languages import require_languages
from deepseek_ops.data.content.profile import SplitProfile, drift, stored_profiles
from deepseek_ops.data.content.rows import Row, TextUnit, format_of, read_rows, text_of
from deepseek_ops.data.content.spill import Spill
from deepseek_ops.data.content.version_files import files_at, open_files, split_of
from deepseek_ops.data.packs import Stored
from deepseek_ops.data.repository import DatasetRepository

if TYPE_CHECKING:
    from numpy import ndarray

_BATCH = 256
_ROW_FIELDS = [
    ("rest", "<u8"), ("content", "V16"), ("tokens", "<u4"), ("file", "<u4"), ("row", "<u8"), ("split", "<u1"),
    ("side", "<u1"),
]  # fmt: skip
_OLD, _NEW = 0, 1


@dataclass(frozen=True)
class DiffOptions:
    """How records are compared."""

    key: str | None = None
    """Field that names a record; None compares by content."""
    fields: tuple[str, ...] = ()
    """Fields that make a record's text; none = ``text``, or every text."""
    text_unit: TextUnit = "line"
    examples: int = 5
    languages: bool = True
    count: TokenCount = count_words
    measure: str = "words (separated by whitespace)"
    """What ``count`` counts, for people."""


def record_diff(
    repository: DatasetRepository, old_version: str, new_version: str, options: DiffOptions | None = None
) -> RecordDiff:
    """Return what changed from one version to another, in total and per split, with examples.

    Raises VersionNotFoundError, MissingDependencyError, IntegrityError.
    """
    options = options or DiffOptions()
    require("numpy", "comparing records")
    if options.languages:
        require_languages()
    old, new = repository.resolve(old_version), repository.resolve(new_version)
    changed = repository.diff(old, new)
    with tempfile.TemporaryDirectory(prefix="deepseek-ops-diff-") as folder:
        comparison = _Comparison(repository, (old, new), options, Path(folder))
        comparison.read(_OLD, [*changed.removed, *changed.modified])
        comparison.read(_NEW, [*changed.added, *changed.modified])
        comparison.compare()
        paths = {*changed.added, *changed.removed, *changed.modified}
        return RecordDiff(
            old=old,
            new=new,
            identity=f"field {options.key}" if options.key else "content",
            measure=options.measure,
            files={"added": len(changed.added), "removed": len(changed.removed), "modified": len(changed.modified)},
            files_without_records=sum(format_of(path) is None for path in paths),
            unreadable=comparison.unreadable,
            duplicate_keys=comparison.duplicate_keys,
            splits=comparison.splits(),
            examples=comparison.examples(),
        )


@dataclass
class _Change:
    """Counts of one split."""

    added: list[int] = field(default_factory=lambda: [0, 0])
    removed: list[int] = field(default_factory=lambda: [0, 0])
    changed: list[int] = field(default_factory=lambda: [0, 0])
    moved: int = 0
    same: int = 0


Kind = Literal["added", "removed", "changed"]


class _Comparison:
    def __init__(
        self, repository: DatasetRepository, versions: tuple[str, str], options: DiffOptions, scratch: Path
    ) -> None:
        self._repository = repository
        self._versions = versions
        self._options = options
        self._scratch = scratch
        self._spill = Spill(scratch, "records", _ROW_FIELDS)
        self._files: list[Stored] = []
        self._splits: list[str] = []
        self._profiles: dict[tuple[int, str], SplitProfile] = {}
        self._changes: dict[str, _Change] = defaultdict(_Change)
        self._wanted: dict[Kind, list[tuple[tuple[int, int] | None, tuple[int, int] | None]]] = defaultdict(list)
        self.unreadable = 0
        self.duplicate_keys = 0

    def read(self, side: int, paths: Sequence[str]) -> None:
        """Read the records of these files of one side."""
        files = files_at(self._repository, self._versions[side], paths)
        for stored, source in open_files(self._repository, files, self._scratch):
            split = split_of(stored.entry.path, stored.entry.split)
            if split not in self._splits:
                self._splits.append(split)
            self._files.append(stored)
            batch: list[Row] = []
            for row in read_rows(stored.entry.path, source, text_unit=self._options.text_unit):
                if row.problem:
                    self.unreadable += 1
                    continue
                batch.append(row)
                if len(batch) >= _BATCH:
                    self._take(side, split, batch)
                    batch = []
            self._take(side, split, batch)

    def _take(self, side: int, split: str, batch: Sequence[Row]) -> None:
        import numpy as np

        if not batch:
            return
        texts = [text_of(row.value, self._options.fields) for row in batch]
        tokens = self._options.count(texts)
        profile = self._profiles.setdefault((side, split), SplitProfile(languages=self._options.languages))
        code, number = self._splits.index(split), len(self._files) - 1
        rows = []
        for row, text, count in zip(batch, texts, tokens, strict=True):
            profile.add(text, count)
            key, content = identity_of(row.value, self._options.key)
            first, rest = int.from_bytes(key[:8], "little"), int.from_bytes(key[8:], "little")
            rows.append((first, rest, content, count, number, row.row, code, side))
        self._spill.add(np.array(rows, self._spill.dtype))

    def compare(self) -> None:
        """Match the records of both sides."""
        for part in self._spill.parts():
            for group in self._unequal(part):
                self._match(group)

    def _unequal(self, part: ndarray) -> Iterator[list[tuple[int, ...]]]:
        """Yield the groups of one key that are not simply one equal record on either side; those are counted."""
        import numpy as np

        keys = part["key"]
        begins = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
        ends: ndarray = np.append(begins[1:], len(keys))
        plain = ends - begins == 2
        left, right = part[begins[plain]], part[begins[plain] + 1]
        equal = (left["side"] == _OLD) & (right["side"] == _NEW) & (left["split"] == right["split"])
        equal &= (left["rest"] == right["rest"]) & (left["content"] == right["content"])
        for code, count in zip(*np.unique(left["split"][equal], return_counts=True), strict=True):
            self._changes[self._splits[int(code)]].same += int(count)
        open_ones: ndarray = np.ones(len(begins), bool)
        open_ones[np.flatnonzero(plain)[equal]] = False
        for begin, end in zip(begins[open_ones].tolist(), ends[open_ones].tolist(), strict=True):
            by_rest: dict[int, list[tuple[int, ...]]] = defaultdict(list)
            for row in part[begin:end].tolist():
                by_rest[row[1]].append(row)
            yield from by_rest.values()

    def _match(self, rows: list[tuple[int, ...]]) -> None:
        """Pair the rows of one key: equal content first, then in the order they came."""
        before = [row for row in rows if row[-1] == _OLD]
        after = [row for row in rows if row[-1] == _NEW]
        if self._options.key:
            self.duplicate_keys += max(len(before) - 1, 0) + max(len(after) - 1, 0)
        waiting: dict[object, list[tuple[int, ...]]] = defaultdict(list)
        for row in before:
            waiting[row[2]].append(row)
        rest = []
        for row in after:
            if waiting[row[2]]:
                old = waiting[row[2]].pop(0)
                self._equal(old, row)
            else:
                rest.append(row)
        left = [row for same in waiting.values() for row in same]
        while left and rest:
            self._changed(left.pop(0), rest.pop(0))
        for row in left:
            self._only("removed", row)
        for row in rest:
            self._only("added", row)

    def _equal(self, old: tuple[int, ...], new: tuple[int, ...]) -> None:
        change = self._changes[self._splits[new[6]]]
        if old[6] == new[6]:
            change.same += 1
        else:
            change.moved += 1

    def _changed(self, old: tuple[int, ...], new: tuple[int, ...]) -> None:
        change = self._changes[self._splits[new[6]]]
        change.changed[0] += 1
        change.changed[1] += new[3] - old[3]
        self._want("changed", (old[4], old[5]), (new[4], new[5]))

    def _only(self, kind: Literal["added", "removed"], row: tuple[int, ...]) -> None:
        change = self._changes[self._splits[row[6]]]
        counts = change.added if kind == "added" else change.removed
        counts[0] += 1
        counts[1] += row[3]
        place = (row[4], row[5])
        self._want(kind, None if kind == "added" else place, place if kind == "added" else None)

    def _want(self, kind: Kind, old: tuple[int, int] | None, new: tuple[int, int] | None) -> None:
        # Parts and keys come in ascending order of a digest: the first ones are a sample of all.
        if len(self._wanted[kind]) < self._options.examples:
            self._wanted[kind].append((old, new))

    def splits(self) -> dict[str, SplitDiff]:
        """Return the counts and distributions of each split, by name."""
        stored = {side: stored_profiles(self._repository, version) for side, version in enumerate(self._versions)}
        found = {}
        for split in sorted(set(self._splits)):
            change = self._changes[split]
            sides = [self._profiles.get((side, split)) for side in (_OLD, _NEW)]
            bodies = [profile.dump() if profile else None for profile in sides]
            compared = [body or stored[side].get(split) for side, body in enumerate(bodies)]
            old, new = compared
            found[split or "all"] = SplitDiff(
                added=Amount(records=change.added[0], tokens=change.added[1]),
                removed=Amount(records=change.removed[0], tokens=change.removed[1]),
                changed=Amount(records=change.changed[0], tokens=change.changed[1]),
                moved=change.moved,
                unchanged=change.same,
                old=Side.model_validate(bodies[0]) if bodies[0] else None,
                new=Side.model_validate(bodies[1]) if bodies[1] else None,
                shift=drift(old, new) if isinstance(old, dict) and isinstance(new, dict) else {},
                shift_from="whole split" if bodies[0] is None and isinstance(old, dict) else "files that differ",
            )
        return found

    def examples(self) -> tuple[RecordExample, ...]:
        """Return the records that were chosen, read again from their files."""
        places = {place for pairs in self._wanted.values() for pair in pairs for place in pair if place}
        rows = dict(self._fetch(places))
        found = []
        for kind, pairs in sorted(self._wanted.items()):
            for old, new in pairs:
                texts = [text_of(rows[place].value, self._options.fields) if place else "" for place in (old, new)]
                row = rows[new or old or (0, 0)]
                before, after = excerpts(*texts)
                name = row.value.get(self._options.key or "id") if isinstance(row.value, dict) else None
                found.append(
                    RecordExample(
                        kind=kind, file=row.file, row=row.row, key=str(name or ""), old=before, new=after,
                        split=split_of(row.file),
                    )
                )  # fmt: skip
        return tuple(found)

    def _fetch(self, places: Iterable[tuple[int, int]]) -> Iterator[tuple[tuple[int, int], Row]]:
        by_file: dict[int, set[int]] = defaultdict(set)
        for number, line in places:
            by_file[number].add(line)
        for number, lines in by_file.items():
            for stored, source in open_files(self._repository, [self._files[number]], self._scratch):
                for row in read_rows(stored.entry.path, source, text_unit=self._options.text_unit):
                    if row.row in lines:
                        yield (number, row.row), row
                    if row.row >= max(lines):
                        break
