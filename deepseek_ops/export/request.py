"""What an export job is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from deepseek_ops.core.records import FileSet, Record

Format = Literal["onnx", "tensorrt", "torchscript", "safetensors"]
Precision = Literal["auto", "fp32", "fp16"]
Flavor = Literal["auto", "rtx", "enterprise"]
SmTarget = Literal["current", "sm75", "sm80", "sm86", "sm89", "sm120", "sm121"]


class ExportOptions(Record):
    """Choices that a format may need; the others ignore them."""

    flavor: Flavor = Field(default="auto", description="TensorRT: auto takes enterprise where it is installed.")
    precision: Precision = Field(default="auto", description="TensorRT: auto takes fp16 where it agrees, else fp32.")
    max_batch: int = Field(default=8, ge=1, le=1024, description="TensorRT: largest batch of the engine's profile.")
    max_length: int = Field(default=512, ge=2, description="TensorRT: most tokens per sequence; bound by the model's.")
    sm_targets: tuple[SmTarget, ...] = Field(
        default=("sm89",), min_length=1, description="TensorRT RTX: GPU generations the engine is built for."
    )


class ExportSample(Record):
    """Held-out data to compare on: texts, or token ids where the model has no tokenizer.json."""

    texts: tuple[str, ...] = ()
    token_ids: tuple[tuple[int, ...], ...] = ()

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if bool(self.texts) == bool(self.token_ids):
            raise ValueError("give either texts or token_ids, not both and not neither")
        if any(token < 0 for row in self.token_ids for token in row):
            raise ValueError("a token id is negative")
        return self


class ExportRequest(Record):
    """The payload of an export job."""

    model: FileSet = Field(description="A model in the hub layout: config.json, safetensors, tokenizer.json.")
    format: Format
    options: ExportOptions = ExportOptions()
    sample: ExportSample

    @field_validator("model", mode="before")
    @classmethod
    def _dumped(cls, value: object) -> object:
        """Accept what ``FileSet.dump`` wrote: its ``schema`` is no field of the record."""
        return FileSet.load(value) if isinstance(value, Mapping) else value
