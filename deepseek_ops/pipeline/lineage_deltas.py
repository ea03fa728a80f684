"""Metric differences of two results with what is known of their uncertainty.

An interval needs the same items measured with both models. Where two stages used the same selection, all items pair.
Where the test data differs, the documents that both selections hold, equal by id and text, still pair: they are the
same questions. Otherwise there is no interval, and the reason stands in its place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import Field

from deepseek_ops.core.config.base import Direction
from deepseek_ops.core.errors import DeepSeekOpsError
from deepseek_ops.core.records import Evaluation, Record
from deepseek_ops.pipeline.evaluations import ITEM_VALUES
from deepseek_ops.pipeline.lineage_made_of import read_config
from deepseek_ops.pipeline.lineage_sources import Sources
from deepseek_ops.pipeline.lineage_subject import Subject
from deepseek_ops.pipeline.metric_directions import agreed, directions_of
from deepseek_ops.registry.bundle import evidence_path
from deepseek_ops.registry.layout import folder_key
from deepseek_ops.validation import IncomparableItemsError, compare_paired

CONFIDENCE = 0.975
"""One-sided: the interval is the two-sided one at 95 %."""
MAX_DOCUMENT_BYTES = 64 << 20


class Delta(Record):
    """How one metric differs."""

    metric: str
    stage: str = ""
    old: float
    new: float
    delta: float
    direction: Direction | None = Field(default=None, description="Which way is better; None where nobody declares it.")
    interval: tuple[float, float] | None = Field(default=None, description="Of delta, 95 %, over paired items.")
    items: int = Field(default=0, ge=0, description="Items that pair.")
    note: str = Field(default="", description="Why there is no interval, or over which items it is.")

    @property
    def beyond_chance(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.interval is not None and not self.interval[0] <= 0 <= self.interval[1]

    @property
    def verdict(self) -> str:
        """The new value beside the old one: better or worse where a direction is declared, else which way it moved."""
        if not self.delta or self.direction is None:
            return f"moved {'up' if self.delta > 0 else 'down'}" if self.delta else "is equal"
        return "is better" if (self.delta > 0) == (self.direction == "maximize") else "is worse"


def metric_deltas(sources: Sources, old: Subject, new: Subject) -> list[Delta]:
    """Return the difference of every metric that both results have: gates first, each with its interval."""
    before = {one.stage: one for one in old.bundle.evaluations} if old.bundle else {}
    after = {one.stage: one for one in new.bundle.evaluations} if new.bundle else {}
    found: list[Delta] = []
    for stage in sorted(before.keys() & after.keys()):
        found += _stage(sources, (old, new), (before[stage], after[stage]))
    values = [subject.metrics for subject in (old, new)]
    for metric in sorted(values[0].keys() & values[1].keys()):
        was, now = values[0][metric], values[1][metric]
        note = "measured once, at the end of training: nothing pairs"
        found.append(Delta(metric=metric, old=was, new=now, delta=now - was, note=note))
    ways = agreed(_directions(sources, old), _directions(sources, new))
    return [one.evolve(direction=ways.get(one.metric)) for one in found]


def _directions(sources: Sources, subject: Subject) -> dict[str, Direction]:
    config = read_config(sources, subject.manifest)[0] if subject.manifest else None
    return directions_of(config)


def _stage(sources: Sources, sides: tuple[Subject, Subject], pair: tuple[Evaluation, Evaluation]) -> list[Delta]:
    shared, why = _comparable(sources, *pair)
    rows: list[dict[str, dict[str, float]]] = []
    for subject, one in zip(sides, pair, strict=True) if not why else ():
        try:
            rows.append(_items(sources, subject, one))
        except DeepSeekOpsError as error:
            why = f"per-item results: {error}"
    found = []
    for metric in sorted(pair[0].metrics.keys() & pair[1].metrics.keys()):
        was, now = pair[0].metrics[metric], pair[1].metrics[metric]
        plain = Delta(metric=metric, stage=pair[0].stage, old=was, new=now, delta=now - was, note=why)
        found.append(plain if why else _paired(plain, rows, shared))
    return found


def _paired(plain: Delta, rows: list[dict[str, dict[str, float]]], shared: set[str] | None) -> Delta:
    field = ITEM_VALUES.get(plain.metric, plain.metric)
    sides = [
        {item: row[field] for item, row in side.items() if field in row and (shared is None or item in shared)}
        for side in rows
    ]
    if shared is not None:
        common = sides[0].keys() & sides[1].keys()
        sides = [{item: side[item] for item in common} for side in sides]
    if not any(sides):
        return plain.evolve(note=f"no item has a value of {plain.metric}")
    try:
        seen = compare_paired(sides[1], sides[0], margin=1.0, confidence=CONFIDENCE)
    except IncomparableItemsError as error:
        return plain.evolve(note=str(error))
    if seen.n < 2:
        return plain.evolve(note="one item gives no interval")
    note = "" if shared is None else f"over the {seen.n} documents that both test sets hold: {seen.delta:+.6g}"
    return plain.evolve(interval=seen.interval, items=seen.n, note=note)


def _items(sources: Sources, subject: Subject, one: Evaluation) -> dict[str, dict[str, float]]:
    """Return item id -> numbers, from the blobs or from the copy in the version's own folder."""
    if one.items is None or subject.bundle is None or subject.registry is None:
        return {}
    try:
        data = sources.stores.blobs.get(one.items.digest)
    except DeepSeekOpsError:
        data = subject.registry.get(folder_key(subject.bundle.version) + evidence_path(one))
    rows = (json.loads(line) for line in data.splitlines() if line)
    return {str(row["id"]): _numbers(row) for row in rows if isinstance(row, dict) and "id" in row}


def _numbers(row: Mapping[str, object]) -> dict[str, float]:
    return {key: float(value) for key, value in row.items() if isinstance(value, int | float)}


def _comparable(sources: Sources, old: Evaluation, new: Evaluation) -> tuple[set[str] | None, str]:
    """Return the items that may be paired (None: all), or why none may."""
    if old.items is None or new.items is None:
        return None, "one of the two stored no per-item results"
    if old.dataset == new.dataset:
        return None, ""
    different = f"other test sets: {old.dataset} and {new.dataset}"
    left, right = old.dataset.split(":"), new.dataset.split(":")
    if len(left) != 3 or len(right) != 3:
        return None, different
    try:
        sides = _documents(sources, left[0], left[1]), _documents(sources, right[0], right[1])
    except DeepSeekOpsError as error:
        return None, f"{different}; their documents: {error}"
    shared = {name for name, text in sides[0].items() if sides[1].get(name) == text}
    return (shared, "") if shared else (None, f"{different}; they have no document in common")


def _documents(sources: Sources, version: str, split: str) -> dict[str, str]:
    """Return id -> text of a split's documents; none where they are too many to hold."""
    files = [
        file
        for file in sources.datasets.files(version)
        if file.entry.path.startswith("documents/") and file.entry.path.split("/")[1].startswith(split)
    ]
    if sum(file.entry.size for file in files) > MAX_DOCUMENT_BYTES:
        return {}
    found: dict[str, str] = {}
    for file in files:
        for line in sources.datasets.read_file(version, file.entry.path).splitlines():
            document = json.loads(line)
            found[str(document["id"])] = str(document["text"])
    return found
