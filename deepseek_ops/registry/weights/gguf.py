"""The header of a GGUF file: counted keys and values, counted tensors, then data at aligned offsets."""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass

from deepseek_ops.registry.weights.errors import WeightFormatError
from deepseek_ops.registry.weights.ranges import Ranges, buffered
from deepseek_ops.registry.weights.record import MAX_ELEMENTS, TensorInfo, WeightInfo, by_name, clipped

MAGIC = b"GGUF"
MAX_KEYS = 100_000
MAX_TENSORS = 1_000_000
MAX_TEXT = 16 << 20
MAX_ITEMS = 10_000_000
MAX_DEPTH = 4
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

# type -> name, elements a block, bytes a block
_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}  # fmt: skip


def read_gguf(ranges: Ranges) -> WeightInfo:
    """Return what the header says, checked. Raises WeightFormatError."""
    return _GgufReader(ranges).info()


@dataclass(frozen=True, slots=True)
class _Placed:
    tensor: TensorInfo
    offset: int


class _GgufReader:
    def __init__(self, ranges: Ranges) -> None:
        self._ranges = ranges
        self._file: io.BufferedReader = buffered(ranges)

    def info(self) -> WeightInfo:
        if self._take(4) != MAGIC:
            raise self._wrong("it does not begin with GGUF")
        version = self._number("I")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            kind = "a big-endian GGUF file" if swapped in (1, 2, 3) else f"GGUF version {version}"
            raise self._wrong(f"it is {kind}; versions 2 and 3, little-endian, are read")
        num_tensors, num_keys = self._number("Q"), self._number("Q")
        if num_tensors > MAX_TENSORS or num_keys > MAX_KEYS:
            raise self._wrong(f"it claims {num_tensors:,} tensors and {num_keys:,} keys")
        metadata: dict[str, str] = {}
        for _ in range(num_keys):
            key = self._text(65_535)
            if key in metadata:
                raise self._wrong(f"the key {key[:80]!r} appears twice")
            metadata[key] = self._value(self._number("I"))
        placed = [self._tensor() for _ in range(num_tensors)]
        self._require_room(placed, metadata.get("general.alignment", "32"))
        return WeightInfo(
            format="gguf",
            framework=f"gguf {metadata.get('general.architecture', 'unknown')[:40]}",
            tensors=by_name([one.tensor for one in placed]),
            num_bytes=self._ranges.size,
            metadata=clipped(metadata),
        )

    def _tensor(self) -> _Placed:
        name, dimensions = self._text(65_535), self._number("I")
        if dimensions > 8:
            raise self._wrong(f"tensor {name[:80]!r} has {dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))
        kind, offset = self._number("I"), self._number("Q")
        if kind not in _TYPES:
            raise self._wrong(f"tensor {name[:80]!r} has the unknown type {kind}")
        dtype, block, block_bytes = _TYPES[kind]
        elements = math.prod(shape)
        if elements > MAX_ELEMENTS or (shape and shape[0] % block):
            raise self._wrong(f"tensor {name[:80]!r} of {dtype} has the impossible shape {shape}")
        # GGUF counts the fastest dimension first; everybody else last.
        tensor = TensorInfo(name=name, dtype=dtype, shape=shape[::-1], num_bytes=elements // block * block_bytes)
        return _Placed(tensor, offset)

    def _require_room(self, placed: list[_Placed], alignment: str) -> None:
        if not alignment.isdigit() or int(alignment) not in {1 << bit for bit in range(17)}:
            raise self._wrong(f"general.alignment is {alignment[:40]!r}, not a small power of two")
        step = int(alignment)
        start = -(-self._file.tell() // step) * step
        if len({one.tensor.name for one in placed}) != len(placed):
            raise self._wrong("a tensor's name appears twice")
        at = 0
        for one in sorted(placed, key=lambda each: each.offset):
            if one.offset % step or one.offset < at:
                raise self._wrong(f"tensor {one.tensor.name[:80]!r} at byte {one.offset} overlaps or is not aligned")
            at = one.offset + one.tensor.num_bytes
        if placed and start + at > self._ranges.size:
            raise self._wrong(f"its tensors end at byte {start + at} of {self._ranges.size}: it was cut")

    def _value(self, kind: int, depth: int = 0) -> str:
        """Return a value as text; of an array its type, its length and its first items."""
        if kind == _STRING:
            return self._text(MAX_TEXT)
        if kind in _SCALARS:
            return str(self._number(_SCALARS[kind]))
        if kind != _ARRAY or depth >= MAX_DEPTH:
            raise self._wrong(f"a value has the unknown type {kind}, or arrays are nested too deep")
        items, count = self._number("I"), self._number("Q")
        if count > MAX_ITEMS:
            raise self._wrong(f"an array claims {count:,} items")
        shown = [self._value(items, depth + 1) for _ in range(min(count, 3))]
        rest = count - len(shown)
        if items in _SCALARS:
            self._skip(rest * struct.calcsize(_SCALARS[items]))
        else:
            for _ in range(rest):
                self._value(items, depth + 1)
        return f"{count} items: {', '.join(shown)}{', ...' if rest else ''}"

    def _text(self, limit: int) -> str:
        length = self._number("Q")
        if length > limit:
            raise self._wrong(f"a text claims {length:,} bytes")
        return self._take(length).decode("utf-8", errors="replace")

    def _number(self, kind: str) -> int:
        number: int = struct.unpack(f"<{kind}", self._take(struct.calcsize(f"<{kind}")))[0]
        return number

    def _take(self, length: int) -> bytes:
        data = self._file.read(length)
        if len(data) != length:
            raise self._wrong("its header is cut short")
        return data

    def _skip(self, length: int) -> None:
        target = self._file.tell() + length
        if target > self._ranges.size:
            raise self._wrong("an array ends beyond the file")
        self._file.seek(target)

    def _wrong(self, problem: str) -> WeightFormatError:
        return WeightFormatError(self._ranges.name, problem)
