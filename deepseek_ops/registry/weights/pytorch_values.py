"""From what a pickle describes to tensors: PyTorch's rebuild calls read as facts, everything else as metadata."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from deepseek_ops.registry.weights.errors import WeightFormatError
from deepseek_ops.registry.weights.pickle_reading import Called, Imported, Pairs, Stored
from deepseek_ops.registry.weights.record import MAX_ELEMENTS, MAX_TENSORS, TensorInfo

MAX_DEPTH = 200
_METADATA_DEPTH = 4
_MAX_METADATA = 200

DTYPES = {
    "Float": ("F32", 4), "Double": ("F64", 8), "Half": ("F16", 2), "BFloat16": ("BF16", 2), "Long": ("I64", 8),
    "Int": ("I32", 4), "Short": ("I16", 2), "Char": ("I8", 1), "Byte": ("U8", 1), "Bool": ("BOOL", 1),
    "ComplexFloat": ("C64", 8), "ComplexDouble": ("C128", 16), "QInt8": ("QI8", 1), "QUInt8": ("QU8", 1),
    "QInt32": ("QI32", 4), "QUInt4x2": ("QU4X2", 1), "QUInt2x4": ("QU2X4", 1),
}  # fmt: skip
_BY_NAME = {
    "float32": ("F32", 4), "float64": ("F64", 8), "float16": ("F16", 2), "bfloat16": ("BF16", 2), "int64": ("I64", 8),
    "int32": ("I32", 4), "int16": ("I16", 2), "int8": ("I8", 1), "uint8": ("U8", 1), "bool": ("BOOL", 1),
    "uint16": ("U16", 2), "uint32": ("U32", 4), "uint64": ("U64", 8), "complex64": ("C64", 8),
    "complex128": ("C128", 16), "float8_e4m3fn": ("F8_E4M3", 1), "float8_e5m2": ("F8_E5M2", 1),
    "float8_e4m3fnuz": ("F8_E4M3FNUZ", 1), "float8_e5m2fnuz": ("F8_E5M2FNUZ", 1), "float8_e8m0fnu": ("F8_E8M0", 1),
    "float4_e2m1fn_x2": ("F4", 1),
}  # fmt: skip
_TENSOR_CALLS = frozenset(["_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3", "_rebuild_qtensor"])
_WRAPPING_CALLS = frozenset(["_rebuild_parameter", "_rebuild_parameter_with_state"])
_TENSOR_MODULES = frozenset(["torch._utils", "torch._tensor", "torch", "torch.storage"])
_HARMLESS = frozenset(
    ["collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict", "builtins.set",
     "__builtin__.set", "__builtin__.dict", "builtins.list", "torch.Size", "torch.device",
     "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer", "torch.Tensor", "_codecs.encode",
     "torch.serialization._get_layout", "torch._tensor._rebuild_from_type_v2"]
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of elements in the file that tensors are views of."""

    key: str
    dtype: str
    item_bytes: int
    num_elements: int


class TensorWalk:
    """Finds tensors and metadata in what a pickle describes. Every container is visited once, whatever names it.

    Args:
        file: For messages.
        room: Returns the bytes that a storage has in the file. Raises WeightFormatError for one that is not there.
    """

    def __init__(self, file: str, room: Callable[[Storage], int | None]) -> None:
        self.tensors: dict[str, TensorInfo] = {}
        self.metadata: dict[str, str] = {}
        self._file = file
        self._room = room
        self._seen: set[int] = set()

    def walk(self, value: object) -> None:
        """Visit a value and everything in it."""
        waiting: list[tuple[str, object, int]] = [("", value, 0)]
        while waiting:
            path, value, depth = waiting.pop()
            if depth > MAX_DEPTH:
                raise WeightFormatError(self._file, f"it is nested more than {MAX_DEPTH} deep")
            tensor = self._tensor(path, value)
            if tensor is not None:
                self._add(tensor)
            elif isinstance(value, str | int | float | bool):
                self._note(path, value, depth)
            elif not isinstance(value, Pairs | list | tuple | Called) or self._visited(value):
                continue
            else:
                waiting.extend(
                    (f"{path}.{name}" if path else name, child, depth + 1) for name, child in _children(value)
                )

    def _visited(self, value: object) -> bool:
        if value == () or id(value) in self._seen:
            return True
        self._seen.add(id(value))
        return False

    def _add(self, tensor: TensorInfo) -> None:
        if len(self.tensors) >= MAX_TENSORS:
            raise WeightFormatError(self._file, f"it has more than {MAX_TENSORS:,} tensors")
        name, number = tensor.name, 2
        while name in self.tensors:  # a key 1 and a key "1"
            name, number = f"{tensor.name}#{number}", number + 1
        self.tensors[name] = tensor if name == tensor.name else tensor.evolve(name=name)

    def _note(self, path: str, value: str | float, depth: int) -> None:
        if path and depth <= _METADATA_DEPTH and len(self.metadata) < _MAX_METADATA:
            self.metadata[path] = str(value) if not isinstance(value, int) or abs(value) < 1 << 64 else "a huge number"

    def _tensor(self, path: str, value: object) -> TensorInfo | None:
        """Return the tensor that a call would rebuild, or None for any other value."""
        for _ in range(MAX_DEPTH):
            if not isinstance(value, Called) or not isinstance(value.target, Imported):
                return None
            name, arguments = value.target.name, value.arguments
            if value.target.module not in _TENSOR_MODULES or not isinstance(arguments, tuple):
                return None
            if name in _TENSOR_CALLS:
                return self._rebuilt(path, name, arguments)
            if name in _WRAPPING_CALLS and arguments:
                value = arguments[0]
            elif name == "_rebuild_from_type_v2" and len(arguments) >= 3:
                value = Called(arguments[0], arguments[2])
            else:
                return None
        return None

    def _rebuilt(self, path: str, call: str, arguments: tuple[object, ...]) -> TensorInfo:
        if len(arguments) < 4 or not isinstance(arguments[0], Stored):
            raise self._wrong(path, f"{call} has {len(arguments)} arguments and no storage")
        storage = self._storage(path, arguments[0])
        offset, shape, strides = arguments[1], _sizes(arguments[2]), _sizes(arguments[3])
        dtype, item_bytes = storage.dtype, storage.item_bytes
        if call == "_rebuild_tensor_v3":
            given = arguments[6] if len(arguments) > 6 else None
            if not isinstance(given, Imported) or given.name not in _BY_NAME:
                raise self._wrong(path, f"its dtype is {str(given)[:60]}")
            dtype, item_bytes = _BY_NAME[given.name]
        if (
            shape is None
            or strides is None
            or len(shape) != len(strides)
            or len(shape) > 64
            or not isinstance(offset, int)
        ):
            raise self._wrong(path, "its shape, strides or offset are no sizes")
        elements = math.prod(shape)
        last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True)) + 1
        held = storage.num_elements * storage.item_bytes
        if offset < 0 or elements > MAX_ELEMENTS or (elements and last * item_bytes > held):
            raise self._wrong(path, f"it reaches to element {last} of a storage of {held} bytes")
        return TensorInfo(name=path or "tensor", dtype=dtype, shape=shape, num_bytes=elements * item_bytes)

    def _storage(self, path: str, stored: Stored) -> Storage:
        key = stored.key
        if not isinstance(key, tuple) or len(key) < 5 or key[0] != "storage" or not isinstance(key[1], Imported):
            raise self._wrong(path, "its storage is named in an unknown way")
        _, kind, name, _, count = key[:5]
        dtype, item_bytes = DTYPES.get(kind.name.removesuffix("Storage"), ("U8", 1))
        if kind.name not in ("UntypedStorage", "TypedStorage") and kind.name.removesuffix("Storage") not in DTYPES:
            raise self._wrong(path, f"its storage is a {kind.dotted[:60]}")
        if not isinstance(name, str) or not _size(count):
            raise self._wrong(path, "its storage has no name or no size")
        storage = Storage(name, dtype, item_bytes, count)
        room = self._room(storage)
        if room is not None and room < count * item_bytes:
            raise self._wrong(path, f"its storage of {count * item_bytes} bytes has {room} in the file")
        return storage

    def _wrong(self, path: str, problem: str) -> WeightFormatError:
        return WeightFormatError(self._file, f"tensor {path[:80]!r}: {problem}")


def executed_names(imported: set[Imported]) -> tuple[str, ...]:
    """Return the names that loading would import beyond those that only rebuild tensors and plain containers."""
    found = set()
    for one in imported:
        storage_or_dtype = one.module in ("torch", "torch.storage") and (
            one.name.endswith("Storage") or one.name in _BY_NAME or one.name.startswith("per_") or one.name == "strided"
        )
        rebuilds = one.module in _TENSOR_MODULES and one.name in _TENSOR_CALLS | _WRAPPING_CALLS
        if not (storage_or_dtype or rebuilds or one.dotted in _HARMLESS or one.dotted.startswith("__torch__.")):
            found.add(one.dotted[:200])
    return tuple(sorted(found)[:50])


def _children(value: Pairs | list[object] | tuple[object, ...] | Called) -> Iterator[tuple[str, object]]:
    if isinstance(value, Pairs):
        for key, child in value.items:
            yield (
                (key if isinstance(key, str) else str(key) if isinstance(key, int) else type(key).__name__)[:500],
                child,
            )
    elif isinstance(value, Called):
        parts = [*value.state, *(value.arguments if isinstance(value.arguments, tuple) else (value.arguments,))]
        for part in parts:
            if isinstance(part, Pairs):
                yield from _children(part)
            elif not isinstance(part, str | int | float):
                yield "_", part
    else:
        yield from ((str(number), child) for number, child in enumerate(value))


def _size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_ELEMENTS


def _sizes(value: object) -> tuple[int, ...] | None:
    if isinstance(value, Called) and isinstance(value.target, Imported) and value.target.dotted == "torch.Size":
        value = value.arguments[0] if isinstance(value.arguments, tuple) and value.arguments else None
    if isinstance(value, tuple | list) and all(_size(one) for one in value):
        return tuple(int(str(one)) for one in value)
    return None
