"""The header of a safetensors file: eight bytes of length, then JSON that must describe every byte that follows."""

from __future__ import annotations

import json
import math
from typing import cast

from deepseek_ops.registry.weights.errors import WeightFormatError
from deepseek_ops.registry.weights.ranges import Ranges
from deepseek_ops.registry.weights.record import MAX_ELEMENTS, MAX_TENSORS, TensorInfo, WeightInfo, by_name, clipped

MAX_HEADER_BYTES = 100_000_000
"""What the format's own library accepts."""

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
_FRAMEWORKS = {"pt": "pytorch", "tf": "tensorflow", "flax": "flax", "mlx": "mlx", "np": "numpy"}


def read_safetensors(ranges: Ranges) -> WeightInfo:
    """Return what the header says, checked as a whole. Raises WeightFormatError."""
    header, data_bytes = _header(ranges)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise WeightFormatError(ranges.name, "__metadata__ is no map of text to text")
    if len(header) > MAX_TENSORS:
        raise WeightFormatError(ranges.name, f"it claims {len(header):,} tensors")
    spans: list[tuple[int, int, str]] = []
    tensors = []
    for name, entry in header.items():
        tensor, begin = _tensor(ranges.name, name, entry)
        tensors.append(tensor)
        spans.append((begin, begin + tensor.num_bytes, name))
    _require_gapless(ranges.name, sorted(spans), data_bytes)
    texts = cast("dict[str, str]", metadata)
    return WeightInfo(
        format="safetensors",
        framework=_FRAMEWORKS.get(texts.get("format", ""), texts.get("format", "") or "unknown")[:40],
        tensors=by_name(tensors),
        num_bytes=ranges.size,
        metadata=clipped(texts),
    )


def _header(ranges: Ranges) -> tuple[dict[str, object], int]:
    if ranges.size < 8:
        raise WeightFormatError(ranges.name, f"{ranges.size} bytes hold no safetensors header")
    length = int.from_bytes(ranges.read(0, 8), "little")
    if length > min(MAX_HEADER_BYTES, ranges.size - 8):
        raise WeightFormatError(
            ranges.name,
            f"its header claims {length:,} bytes of a file of {ranges.size:,}; at most {MAX_HEADER_BYTES:,} are read",
        )
    try:
        header = json.loads(ranges.read(8, length).decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise WeightFormatError(ranges.name, f"its header is no JSON that can be read: {str(error)[:200]}") from None
    if not isinstance(header, dict):
        raise WeightFormatError(ranges.name, "its header is no JSON object")
    return header, ranges.size - 8 - length


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} appears twice")
    return found


def _tensor(file: str, name: str, entry: object) -> tuple[TensorInfo, int]:
    shown = f"tensor {name[:80]!r}"
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise WeightFormatError(file, f"{shown} has not exactly dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise WeightFormatError(file, f"{shown} has the unknown dtype {str(dtype)[:40]!r}")
    if not _sizes(shape) or not _sizes(offsets) or len(offsets) != 2 or len(shape) > 64:
        raise WeightFormatError(file, f"{shown} has a shape or offsets that are no sizes")
    elements, (begin, end) = math.prod(shape), offsets
    if elements > MAX_ELEMENTS or begin > end or elements * BITS[dtype] != (end - begin) * 8:
        raise WeightFormatError(file, f"{shown} of {dtype} {str(shape)[:80]} cannot lie in bytes {begin} to {end}")
    return TensorInfo(name=name, dtype=dtype, shape=tuple(shape), num_bytes=end - begin), begin


def _sizes(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in value
    )


def _require_gapless(file: str, spans: list[tuple[int, int, str]], data_bytes: int) -> None:
    """Refuse overlaps, which alias tensors, and gaps, which hide bytes."""
    at = 0
    for begin, end, name in spans:
        if begin != at:
            problem = "overlaps the tensor before it" if begin < at else "leaves a gap before it"
            raise WeightFormatError(file, f"tensor {name[:80]!r} at byte {begin} {problem} (expected {at})")
        at = end
    if at != data_bytes:
        raise WeightFormatError(file, f"its tensors end at byte {at} of {data_bytes}: it was cut, or more was added")
