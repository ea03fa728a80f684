"""Two weight files side by side: what was added, removed and changed, as a record and as lines like git's."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from deepseek_ops.core.records import Record
from deepseek_ops.registry.weights.record import TensorInfo, WeightInfo, one_line


class TensorChange(Record):
    """One tensor that has another dtype or shape now."""

    name: str
    old: str = Field(description="Such as F32 [64, 32].")
    new: str


class FactChange(Record):
    """One fact or metadata value; None where a side has none."""

    name: str
    old: str | None = None
    new: str | None = None


class WeightDiff(Record):
    """What differs between the headers of two files. Equal headers say nothing about equal values."""

    added: tuple[TensorInfo, ...] = ()
    removed: tuple[TensorInfo, ...] = ()
    changed: tuple[TensorChange, ...] = ()
    facts: tuple[FactChange, ...] = Field(
        default=(), description="Format, framework, parameters, bytes, dtypes, calls."
    )
    metadata: tuple[FactChange, ...] = ()

    @property
    def empty(self) -> bool:
        return not (self.added or self.removed or self.changed or self.facts or self.metadata)


def compare_weights(old: WeightInfo, new: WeightInfo) -> WeightDiff:
    """Return what differs, each list sorted by name."""
    before = {tensor.name: tensor for tensor in old.tensors}
    after = {tensor.name: tensor for tensor in new.tensors}
    return WeightDiff(
        added=tuple(after[name] for name in sorted(after.keys() - before.keys())),
        removed=tuple(before[name] for name in sorted(before.keys() - after.keys())),
        changed=tuple(
            TensorChange(name=name, old=before[name].described, new=after[name].described)
            for name in sorted(before.keys() & after.keys())
            if before[name] != after[name]
        ),
        facts=_changes(_facts(old), _facts(new)),
        metadata=_changes(old.metadata, new.metadata),
    )


def diff_lines(diff: WeightDiff, *, old: str, new: str) -> Iterator[str]:
    """Yield the difference in the manner of ``git diff``; nothing when there is none."""
    if diff.empty:
        return
    yield f"--- {old}"
    yield f"+++ {new}"
    for kind, changes in (("", diff.facts), ("metadata ", diff.metadata)):
        for change in changes:
            if change.old is not None:
                yield f"-{kind}{one_line(change.name)} {one_line(change.old)}"
            if change.new is not None:
                yield f"+{kind}{one_line(change.name)} {one_line(change.new)}"
    for tensor in diff.removed:
        yield f"-tensor {one_line(tensor.name)} {tensor.described}"
    for tensor in diff.added:
        yield f"+tensor {one_line(tensor.name)} {tensor.described}"
    for altered in diff.changed:
        yield f"-tensor {one_line(altered.name)} {altered.old}"
        yield f"+tensor {one_line(altered.name)} {altered.new}"


def _facts(info: WeightInfo) -> dict[str, str]:
    facts = {
        "format": info.format,
        "framework": info.framework,
        "parameters": f"{info.num_parameters:,}",
        "bytes": f"{info.num_bytes:,}",
    }
    facts |= {f"dtype {dtype}": f"{count:,}" for dtype, count in info.dtypes.items()}
    return facts | {f"unpickling calls {name}": "yes" for name in info.executes}


def _changes(old: dict[str, str], new: dict[str, str]) -> tuple[FactChange, ...]:
    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return tuple(FactChange(name=name, old=old.get(name), new=new.get(name)) for name in names)
