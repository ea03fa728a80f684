"""What is trained, how, and which values are searched."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, JsonValue, ValidationInfo, field_validator, model_validator

from deepseek_ops.core.config.base import (
    Config,
    Direction,
    Json,
    Place,
    Problem,
    Problems,
    RepoPath,
    Word,
    warn,
)
from deepseek_ops.core.config.hyperparameter import Hyperparameter
from deepseek_ops.core.records import Hyperparameters

_MODEL_URI = re.compile(r"model://([A-Za-z0-9][A-Za-z0-9._-]{0,99})/(champion|challenger|v?\d+\.\d+\.\d+)")
_BUNDLE_URI = re.compile(r"s3://[A-Za-z0-9._-]{1,63}/[^\x00-\x20?#@]+")
DEFAULT_LEARNING_RATE = 3e-4
DEFAULT_SAMPLES_PER_RANK = 8
_WORLD_PLACES: tuple[Place, ...] = (("nodes",), ("gpus_per_node",))
_SCALED_OUT = "ray, slurm, kubernetes or sagemaker"
_ELASTIC_ENGINES = ("ray",)
"""Engines that go on with fewer machines; the others begin again with all of them."""


@dataclass(frozen=True, slots=True)
class ModelReference:
    """A base model, not yet resolved: a registered name with an alias or version, or the URI of a bundle."""

    name: str = ""
    selector: str = ""
    uri: str = ""


class Budget(Config):
    """What a run may cost at most; the first limit that is reached ends it."""

    usd: float | None = Field(default=None, gt=0, description="US dollars by the price list.")
    hours: float | None = Field(default=None, gt=0, description="Wall-clock hours.")


class Lora(Config):
    """Adapters of ``method: lora``; they are merged into the base when the model is published."""

    rank: int = Field(default=16, ge=1, le=4096, description="Inner dimension of the adapters.")
    alpha: float | None = Field(default=None, gt=0, description="Scale: alpha / rank; none = twice the rank.")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="Share of the adapter's inputs left out in training.")
    targets: tuple[Word, ...] = Field(
        default=(), description="Linear layers that get adapters, such as q_b_proj; none = all of the attention."
    )


class Script(Config):
    """A script of the model repository for the Trainer of transformers or TRL, run as it is under our ranks."""

    path: RepoPath = Field(description="The script, such as train.py.")
    args: tuple[str, ...] = Field(
        default=(),
        description="Its arguments; {dataset}, {base}, {output}, {seed}, {eval_steps}, {max_steps}, {learning_rate} "
        "and the like are replaced. In a sweep it names every searched hyperparameter, and {max_steps} with "
        "sweep.max_steps.",
    )


class Training(Config):
    """One training, or one per trial of the sweep."""

    base: str | None = Field(
        default=None,
        description="Model to go on from: model://name/champion, model://name/v1.2.0 or s3://bucket/prefix/v1.2.0.",
    )
    model: RepoPath = Field(default="deepseek/model.json", description="A transformers config (DeepSeek V2/V3 family).")
    script: Script | None = Field(default=None, description="A script that trains in place of our loop.")
    method: Literal["pretrain", "sft", "lora"] = Field(default="pretrain", description="How the model is trained.")
    strategy: Literal["deepspeed"] = Field(default="deepspeed", description="horovod becomes deepspeed.")
    engine: Literal["local", "ray", "slurm", "kubernetes", "sagemaker"] = Field(
        default="local", description="Where the ranks run."
    )
    nodes: int = Field(default=1, ge=1, le=10_000, description="Machines.")
    min_nodes: int | None = Field(
        default=None,
        ge=1,
        description="Fewest machines to go on with after a loss, a divisor of nodes (engine ray); none = all of them.",
    )
    gpus_per_node: int = Field(default=1, ge=1, le=64, description="Ranks per machine; CPU ranks without GPUs.")
    deepspeed: Json = Field(default_factory=dict, description="DeepSpeed keys, merged over ours; conflicts are errors.")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="Number format of the computation.")
    replay: float = Field(default=0.0, ge=0, lt=1, description="Share of old data when the training is incremental.")
    rewarm: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="With a base: peak of the warmed-up learning rate, as a share of learning_rate; "
        "none = 0.5 for pretrain, 1 for sft and lora.",
    )
    lora: Lora = Field(default=Lora(), description="Adapters of method lora.")
    gradient_checkpointing: bool = Field(
        default=False, description="Compute activations again in the backward pass: less memory, a third more time."
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="Decides initialisation and data order.")
    checkpoint_steps: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default=50,
        description="Optimiser steps between two checkpoints; auto = from their measured cost and the failure rate.",
    )
    eval_steps: int = Field(default=50, ge=1, description="Optimiser steps between two validation losses.")
    hyperparameters: tuple[Hyperparameter, ...] = Field(
        default=(), description="List of {name, value | values | range}, or a mapping from name to one of them."
    )
    budget: Budget = Field(default=Budget(), description="Limits of one run.")

    @field_validator("strategy", mode="before")
    @classmethod
    def _horovod(cls, value: object, info: ValidationInfo) -> object:
        if value == "horovod":
            warn(info, "training.strategy: horovod is no longer maintained for this; deepspeed is used instead")
            return "deepspeed"
        return value

    @field_validator("base")
    @classmethod
    def _base_uri(cls, value: str | None) -> str | None:
        if value is not None and not _MODEL_URI.fullmatch(value) and not _BUNDLE_URI.fullmatch(value):
            raise ValueError("write model://name/champion, model://name/v1.2.0 or s3://bucket/prefix/v1.2.0")
        return value

    @field_validator("hyperparameters", mode="before")
    @classmethod
    def _as_list(cls, value: object) -> object:
        """Return the list form of a mapping: ``{learning_rate: 0.001, batch_size: {values: [32, 64]}}``."""
        if not isinstance(value, dict):
            return value
        return tuple(
            {"name": name, **(given if isinstance(given, dict) else {_key(given): given})}
            for name, given in value.items()
        )

    @field_validator("hyperparameters")
    @classmethod
    def _once_each(cls, value: tuple[Hyperparameter, ...]) -> tuple[Hyperparameter, ...]:
        names = [one.name for one in value]
        found = [
            Problem((at,), f"{name} is given twice.", "Keep one of them.")
            for at, name in enumerate(names)
            if name in names[:at]
        ]
        if found:
            raise Problems(tuple(found))
        return value

    @model_validator(mode="after")
    def _fits(self, info: ValidationInfo) -> Training:
        problems = [*self._indivisible(), *self._inelastic(), *self._too_far()]
        if problems:
            raise Problems(tuple(problems))
        if self.engine == "local" and self.nodes > 1:
            warn(
                info,
                f"training.nodes: {self.nodes} machines need an engine that has them, and training.engine names none; "
                f"runs are refused until it does: {_SCALED_OUT}",
            )
        if self.min_nodes not in (None, self.nodes) and self.engine not in _ELASTIC_ENGINES:
            warn(
                info,
                f"training.min_nodes: engine {self.engine} does not go on with fewer machines; a training that loses "
                f"one begins again with {self.nodes} from its last checkpoint",
            )
        return self

    def _too_far(self) -> list[Problem]:
        """Say that the local engine is one machine, where the file names it; one that names none gets a warning."""
        if self.nodes == 1 or self.engine != "local" or "engine" not in self.model_fields_set:
            return []
        text = f"engine local is this machine, and {self.nodes} are asked for."
        return [Problem(("nodes",), text, f"Use 1, or an engine that has them: {_SCALED_OUT}.", needs=(("engine",),))]

    def _inelastic(self) -> list[Problem]:
        """Say that min_nodes is no size the training can have: every rank's share of a batch must stay whole."""
        if self.min_nodes is None or self.nodes % self.min_nodes == 0:
            return []
        sizes = ", ".join(str(size) for size in range(1, self.nodes + 1) if self.nodes % size == 0)
        text = f"a training of {self.nodes} machines cannot go on with {self.min_nodes}."
        return [Problem(("min_nodes",), text, f"Use a divisor of nodes: {sizes}.", needs=(("nodes",),))]

    def _indivisible(self) -> list[Problem]:
        world = self.nodes * self.gpus_per_node
        remedy = f"Use multiples of nodes x gpus_per_node = {self.nodes} x {self.gpus_per_node} = {world}."
        found = []
        for at, one in enumerate(self.hyperparameters):
            if one.name != "batch_size":
                continue
            odd = [value for value in one.choices or one.range or () if value % world]
            if odd or (one.choices is None and world > 1):
                text = f"a batch of {odd[0]} samples" if odd else "a logarithmic range of batches"
                place: Place = ("hyperparameters", at)
                found.append(
                    Problem(place, f"{text} cannot be shared evenly by {world} ranks.", remedy, needs=_WORLD_PLACES)
                )
        return found

    @property
    def world_size(self) -> int:
        """Ranks over all nodes."""
        return self.nodes * self.gpus_per_node

    @property
    def base_reference(self) -> ModelReference | None:
        if self.base is None:
            return None
        match = _MODEL_URI.fullmatch(self.base)
        return ModelReference(name=match[1], selector=match[2]) if match else ModelReference(uri=self.base)

    @property
    def searched(self) -> tuple[Hyperparameter, ...]:
        """The hyperparameters that a sweep draws, in file order."""
        return tuple(one for one in self.hyperparameters if one.searched)

    def resolve(self, drawn: Mapping[str, JsonValue] | None = None, *, max_steps: int | None = None) -> Hyperparameters:
        """Return the hyperparameters of one training: fixed values, then ``drawn`` ones, then ``max_steps``.

        What the file does not say: learning rate 3e-4, 8 samples per rank, one epoch, the record's own defaults.
        Raises InvalidRecordError for a value the record refuses.
        """
        fixed = {one.name: one.value for one in self.hyperparameters if not one.searched}
        values: dict[str, JsonValue] = {
            "learning_rate": DEFAULT_LEARNING_RATE,
            "batch_size": DEFAULT_SAMPLES_PER_RANK * self.world_size,
            **fixed,
            **(drawn or {}),
        }
        if max_steps is not None:
            values["max_steps"] = max_steps
        if "epochs" not in values and "max_steps" not in values:
            values["epochs"] = 1.0
        return Hyperparameters.load(values)


def _key(given: object) -> str:
    return "values" if isinstance(given, list | tuple) else "value"


class Sweep(Config):
    """The search over ``values`` and ``range`` hyperparameters; without any there is no search."""

    sampler: Literal["tpe", "random", "grid"] = Field(default="tpe", description="How values are drawn.")
    pruner: Literal["asha", "median", "none"] = Field(default="asha", description="How poor trials end early.")
    trials: int = Field(default=20, ge=1, le=1000, description="At most; fewer where the grid is smaller.")
    parallel: int = Field(default=2, ge=1, le=256, description="Trials at a time.")
    metric: Word = Field(default="val_loss", description="What is compared.")
    direction: Direction = Field(default="minimize", description="Which way is better.")
    max_steps: int | None = Field(default=None, ge=1, description="Optimiser steps per trial; none = as the training.")
    seed: int = Field(default=0, ge=0, lt=2**32, description="Decides what is drawn.")

    @field_validator("metric")
    @classmethod
    def _is_measured(cls, value: str) -> str:
        if value in Hyperparameters.model_fields:
            raise ValueError("a hyperparameter is set, not measured; name a metric such as val_loss")
        return value
