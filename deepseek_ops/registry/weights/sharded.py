"""Models in several files: the index beside them, and the files taken together."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import Field

from deepseek_ops.core.records import Record
from deepseek_ops.registry.weights.errors import WeightFormatError
from deepseek_ops.registry.weights.record import WeightInfo, by_name, clipped

INDEX_SUFFIX = ".index.json"
MAX_INDEX_BYTES = 64 << 20


class ShardIndex(Record):
    """``model.safetensors.index.json``: which file holds which tensor."""

    weight_map: dict[str, str] = Field(description="Tensor -> file beside the index.")
    metadata: dict[str, str] = Field(default_factory=dict)

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.weight_map.values())))


def read_shard_index(data: bytes, *, file: str) -> ShardIndex:
    """Return the index. Raises WeightFormatError, also for a shard that lies outside of the index's folder."""
    if len(data) > MAX_INDEX_BYTES:
        raise WeightFormatError(file, f"its index has {len(data):,} bytes")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise WeightFormatError(file, f"its index is no JSON: {str(error)[:160]}") from None
    mapped = body.get("weight_map") if isinstance(body, dict) else None
    if not isinstance(mapped, dict) or not all(isinstance(name, str) for name in mapped.values()):
        raise WeightFormatError(file, "its index has no weight_map of tensors to files")
    for name in set(mapped.values()):
        if "/" in name or "\\" in name or name in ("", ".", "..") or "\x00" in name:
            raise WeightFormatError(file, f"its index names the file {name[:80]!r}, which is not beside it")
    about = body.get("metadata") or {}
    texts = {str(key): str(value) for key, value in about.items()} if isinstance(about, dict) else {}
    return ShardIndex(weight_map=mapped, metadata=clipped(texts))


def combine_shards(shards: Mapping[str, WeightInfo], *, file: str, index: ShardIndex | None = None) -> WeightInfo:
    """Return several files as one model. Raises WeightFormatError when they do not fit each other or the index."""
    if not shards:
        raise WeightFormatError(file, "it has no weight files")
    where: dict[str, str] = {}
    for shard, info in sorted(shards.items()):
        for tensor in info.tensors:
            if tensor.name in where:
                raise WeightFormatError(file, f"tensor {tensor.name[:80]!r} is in {where[tensor.name]} and in {shard}")
            where[tensor.name] = shard
    if index is not None and where != index.weight_map:
        wrong = sorted(
            name for name in where.keys() | index.weight_map.keys() if where.get(name) != index.weight_map.get(name)
        )
        raise WeightFormatError(
            file, f"its index and its files disagree about {len(wrong)} tensors, such as {wrong[0][:80]!r}"
        )
    formats = sorted({info.format for info in shards.values()})
    if len(formats) > 1:
        raise WeightFormatError(file, f"its files are of different formats: {', '.join(formats)}")
    first = shards[min(shards)]
    metadata = {key: value for info in shards.values() for key, value in info.metadata.items()}
    return first.evolve(
        tensors=by_name([tensor for info in shards.values() for tensor in info.tensors]),
        num_bytes=sum(info.num_bytes for info in shards.values()),
        metadata=clipped({**metadata, **(index.metadata if index else {})}),
        executes=tuple(sorted({name for info in shards.values() for name in info.executes})),
        shards=tuple(sorted(shards)) if len(shards) > 1 else (),
    )
