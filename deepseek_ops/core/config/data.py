"""The data that a run reads: where it comes from, how it is prepared, what it must be."""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema, model_validator

from deepseek_ops.core.config.base import Config, Duration, Json, Matches, Problem, Problems, RepoPath
from deepseek_ops.core.config.data_checks import DataChecks
from deepseek_ops.core.quantities import parse_duration
from deepseek_ops.core.records import Name

CallablePath = Annotated[
    str,
    Matches(r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*$", "module:function, such as deepseek.prepare:prepare_data"),
]
RawData = Annotated[
    str,
    Matches(
        r"^(s3://[A-Za-z0-9][A-Za-z0-9._-]{0,62}(/|$)[^\x00-\x20?#@]*|file:///[^\x00-\x20?#@]*"
        r"|(?!/)(?!.*(^|/)\.\.?(/|$))(?!.*://)[^\x00-\x1f\\]{1,300})$",
        "s3://bucket/prefix/, file:///folder/ or a path inside the model repository, without credentials",
    ),
]
SplitName = Literal["train", "val", "test"]

_UNITS = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE = re.compile(r"(\d{1,6}) ?(KiB|MiB|GiB|TiB)")


def _parse_size(text: object) -> int:
    if isinstance(text, int) and not isinstance(text, bool) and text > 0:
        return text
    match = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None or int(match[1]) == 0:
        raise ValueError("write a size with its unit, such as 512MiB or 4GiB")
    return int(match[1]) * _UNITS[match[2]]


def _format_size(size: int) -> str:
    unit = next((unit for unit in reversed(_UNITS) if size % _UNITS[unit] == 0), "")
    return f"{size // _UNITS[unit]}{unit}" if unit else str(size)


Size = Annotated[
    int,
    PlainValidator(_parse_size),
    PlainSerializer(lambda size: _format_size(size) if size % 1024 == 0 else size),
    WithJsonSchema(
        {
            "anyOf": [
                {"type": "string", "pattern": r"^\d{1,6} ?(KiB|MiB|GiB|TiB)$"},
                {"type": "integer", "minimum": 1},
            ],
            "examples": ["4GiB"],
        }
    ),
]
"""Bytes, from a text with a binary unit."""


class Split(Config):
    """Shares of the records per split; a record's split is decided by its content, so it is stable."""

    train: float = Field(default=0.9, gt=0, le=1, description="Share to train on.")
    val: float = Field(default=0.05, ge=0, lt=1, description="Share for the loss during training.")
    test: float = Field(default=0.05, ge=0, lt=1, description="Share that only validation reads.")

    @model_validator(mode="after")
    def _whole(self) -> Split:
        total = self.train + self.val + self.test
        if not math.isclose(total, 1.0, abs_tol=1e-9):
            remedy = "Make train + val + test equal 1."
            raise Problems((Problem((), f"the shares sum to {total:g}.", remedy),))
        return self


class PrepareLimits(Config):
    """What the process of ``prepare`` may use. Another limit does not make another version."""

    memory: Size = Field(default=8 << 30, description="Address space the callable may add to what its start took.")
    cpu: Duration = Field(default=parse_duration("6h"), description="CPU time, over the threads of one process.")
    time: Duration = Field(default=parse_duration("6h"), description="Wall time of the whole job.")
    file_size: Size = Field(default=64 << 30, description="Largest file it may write.")
    open_files: int = Field(default=4096, ge=64, description="Files that may be open at once.")
    processes: int | None = Field(default=None, ge=1, description="Processes and threads of its user; none = no limit.")


class Data(Config):
    """Where the data comes from and what it becomes."""

    raw: RawData | None = Field(default=None, description="Raw data: a URI, or a path in the repository.")
    prepare: CallablePath | None = Field(
        default=None, description="module:function of the model repository, raw -> processed; none = taken as it is."
    )
    parameters: Json = Field(default_factory=dict, description="Keyword arguments of prepare; others, another version.")
    tokenizer: RepoPath | None = Field(
        default=None, description="Folder with a ready tokenizer in the repository; none = prepare writes tokenizer/."
    )
    dataset: Name = Field(default="deepseek", description="Name in the dataset store; the pipeline's name by default.")
    pin: Literal["commit", "require", "newest"] = Field(
        default="commit",
        description="Which data a commit that holds a dataset pointer gets: what it names, unless new data started the "
        "run or the commit prepares differently; exactly that or nothing; or always the newest.",
    )
    split: Split = Field(default=Split(), description="Shares per split.")
    limits: PrepareLimits = Field(default=PrepareLimits(), description="Resources of the process of prepare.")
    checks: DataChecks = Field(default=DataChecks(), description="What must hold before it becomes a version.")
