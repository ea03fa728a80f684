"""What a header says, as records: every tensor for comparing, a summary for the registry, lines for people."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal

from pydantic import Field

from deepseek_ops.core.records import Record

MAX_METADATA_VALUE: Final = 2000
MAX_TENSORS: Final = 2_000_000
"""The largest open models have some 100,000."""
MAX_ELEMENTS: Final = 1 << 60


class TensorInfo(Record):
    """One tensor of a file."""

    name: str
    dtype: str = Field(description="As safetensors names it: F32, BF16, F8_E4M3, I64; GGUF's block types by their own.")
    shape: tuple[int, ...]
    num_bytes: int = Field(ge=0)

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def described(self) -> str:
        """Dtype and shape, such as ``BF16 [2048, 512]``."""
        return f"{self.dtype} [{', '.join(map(str, self.shape))}]"


class WeightInfo(Record):
    """What one weight file, or a model of several, holds."""

    format: Literal["safetensors", "pytorch", "torchscript", "gguf"]
    framework: str = Field(description="What wrote it, as far as the file says.")
    tensors: tuple[TensorInfo, ...] = Field(description="Sorted by name.")
    num_bytes: int = Field(ge=0, description="Size of the file or files.")
    metadata: dict[str, str] = Field(default_factory=dict, description="Training metadata and what else the file says.")
    executes: tuple[str, ...] = Field(
        default=(), description="Names that unpickling would import and call beyond what tensors need: a warning."
    )
    shards: tuple[str, ...] = Field(default=(), description="Files of a sharded model, sorted.")

    @property
    def num_parameters(self) -> int:
        return sum(tensor.num_elements for tensor in self.tensors)

    @property
    def dtypes(self) -> dict[str, int]:
        """Parameters per dtype, most first."""
        counted: Counter[str] = Counter()
        for tensor in self.tensors:
            counted[tensor.dtype] += tensor.num_elements
        return dict(sorted(counted.items(), key=lambda item: (-item[1], item[0])))

    def summary(self) -> WeightSummary:
        """Return the facts without the list of tensors."""
        return WeightSummary(
            format=self.format,
            framework=self.framework,
            num_tensors=len(self.tensors),
            num_parameters=self.num_parameters,
            num_bytes=self.num_bytes,
            dtypes=self.dtypes,
            metadata=self.metadata,
            executes=self.executes,
            num_shards=len(self.shards),
        )


class WeightSummary(Record):
    """The facts of a weight file that fit into a bundle and a card."""

    format: str
    framework: str
    num_tensors: int = Field(ge=0)
    num_parameters: int = Field(ge=0)
    num_bytes: int = Field(ge=0)
    dtypes: dict[str, int] = Field(description="Parameters per dtype.")
    metadata: dict[str, str] = Field(default_factory=dict)
    executes: tuple[str, ...] = ()
    num_shards: int = Field(default=0, ge=0)


def weight_lines(info: WeightInfo) -> Iterator[str]:
    """Yield the file as lines: equal contents give equal lines, so a line diff of two shows what changed."""
    yield f"format {info.format}"
    yield f"framework {info.framework}"
    yield f"parameters {info.num_parameters:,}"
    yield f"bytes {info.num_bytes:,}"
    for dtype, count in info.dtypes.items():
        yield f"dtype {dtype} {count:,}"
    for key, value in sorted(info.metadata.items()):
        yield f"metadata {key} = {one_line(value)}"
    for name in info.executes:
        yield f"WARNING unpickling it would call {one_line(name)}"
    for tensor in info.tensors:
        yield f"tensor {one_line(tensor.name)} {tensor.described}"


def one_line(text: str, limit: int = 200) -> str:
    """Return text that stays on its line and sends no control codes to a terminal."""
    plain = "".join(character if character.isprintable() else "?" for character in text)
    return plain if len(plain) <= limit else f"{plain[:limit]}... ({len(plain)} characters)"


def clipped(metadata: Mapping[str, str]) -> dict[str, str]:
    """Return metadata with long values cut: what a file says about itself has no bound."""
    return {
        key[:200]: value if len(value) <= MAX_METADATA_VALUE else f"{value[:MAX_METADATA_VALUE]}..."
        for key, value in sorted(metadata.items())[:1000]
    }


def by_name(tensors: Sequence[TensorInfo]) -> tuple[TensorInfo, ...]:
    return tuple(sorted(tensors, key=lambda tensor: tensor.name))
