"""What a model must show, where it goes, and who gets it first."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from deepseek_ops.core.config.base import (
    Config,
    Direction,
    Duration,
    Glob,
    ObjectUri,
    Percent,
    PercentStep,
    Problem,
    Problems,
    VersionText,
    Word,
    nearest,
    without_repeats,
)
from deepseek_ops.core.config.data import SplitName
from deepseek_ops.core.config.globs import matches_ref
from deepseek_ops.core.quantities import parse_duration
from deepseek_ops.core.records import Name


class DatasetSelection(Config):
    """A part of the dataset version that the model was trained on."""

    split: SplitName = Field(default="test", description="Which split.")
    max_items: int | None = Field(default=None, ge=1, description="First items by content hash; none = all.")


DEFAULT_SELECTIONS: Mapping[str, DatasetSelection] = {
    "small-test-set": DatasetSelection(max_items=64),
    "full-test-set": DatasetSelection(),
}


class Stage(Config):
    """One gate. Stages are evaluated side by side; each must pass."""

    name: Name = Field(description="Unique among the stages.")
    dataset: Name = Field(default="full-test-set", description="A key of validation.datasets.")
    timeout: Duration = Field(default=parse_duration("1h"), description="After this the stage has failed.")
    against: Literal["none", "champion"] = Field(default="none", description="What the model is compared with.")
    margin: float | None = Field(
        default=None, gt=0, description="How much worse than the champion is still acceptable, metric units."
    )

    @model_validator(mode="after")
    def _margin_and_champion(self) -> Stage:
        if self.against == "champion" and self.margin is None:
            remedy = "Add margin, such as 0.01: how much worse is still acceptable."
            raise Problems((Problem(("against",), "a comparison with the champion needs a margin.", remedy),))
        if self.against == "none" and self.margin is not None:
            raise Problems((Problem(("margin",), "a margin without a comparison.", "Add against: champion."),))
        return self


class Validation(Config):
    """The gates between a trained model and the registry."""

    metric: Word = Field(default="val_loss", description="What the stages judge.")
    direction: Direction = Field(default="minimize", description="Which way is better.")
    confidence: float = Field(
        default=0.95, gt=0.5, lt=1, description="Confidence of each one-sided bound of a comparison."
    )
    datasets: dict[Name, DatasetSelection] = Field(
        default_factory=lambda: dict(DEFAULT_SELECTIONS),
        description="Selections by name, beside the built-in small-test-set and full-test-set.",
        validate_default=False,
    )
    stages: tuple[Stage, ...] = Field(
        default=(
            Stage(name="quick-check", dataset="small-test-set", timeout=parse_duration("30m")),
            Stage(
                name="thorough-eval",
                dataset="full-test-set",
                timeout=parse_duration("2h"),
                against="champion",
                margin=0.01,
            ),
        ),
        min_length=1,
        description="In order of cost.",
    )

    @field_validator("datasets")
    @classmethod
    def _with_defaults(cls, value: dict[str, DatasetSelection]) -> dict[str, DatasetSelection]:
        return {**DEFAULT_SELECTIONS, **value}

    @model_validator(mode="after")
    def _references(self) -> Validation:
        names = [stage.name for stage in self.stages]
        problems = [
            Problem(("stages", at, "name"), f"two stages are called {name!r}.", "Rename one of them.")
            for at, name in enumerate(names)
            if name in names[:at]
        ]
        problems += [
            Problem(
                ("stages", at, "dataset"),
                f"no dataset {stage.dataset!r} in validation.datasets.",
                nearest(stage.dataset, [*self.datasets]) + " Or declare it there.",
                needs=(("datasets",),),
            )
            for at, stage in enumerate(self.stages)
            if stage.dataset not in self.datasets
        ]
        if problems:
            raise Problems(tuple(problems))
        return self


class S3Destination(Config):
    """A prefix of an S3 bucket."""

    type: Literal["s3"]
    path: ObjectUri = Field(description="Such as s3://model-registry/deepseek/.")

    @field_validator("path")
    @classmethod
    def _is_s3(cls, value: str) -> str:
        if not value.startswith("s3://"):
            raise ValueError("an S3 destination is written s3://bucket/prefix/; for file:// write type: local")
        return value


class LocalDestination(Config):
    """A folder of this machine."""

    type: Literal["local"]
    path: ObjectUri = Field(description="Such as file:///srv/models/.")

    @field_validator("path")
    @classmethod
    def _is_a_folder(cls, value: str) -> str:
        if not value.startswith("file:///"):
            raise ValueError("a local destination is written file:///folder; for s3:// write type: s3")
        return value


Destination = Annotated[S3Destination | LocalDestination, Field(discriminator="type")]
ExportFormat = Literal["onnx", "tensorrt", "torchscript", "safetensors"]


class Deployment(Config):
    """Formats, registry and how traffic moves to a new version."""

    formats: tuple[ExportFormat, ...] = Field(default=("safetensors",), min_length=1, description="What is exported.")
    destination: Destination = Field(description="The registry.")
    strategy: Literal["blue-green", "canary", "shadow"] = Field(default="canary", description="How traffic moves.")
    steps: tuple[PercentStep, ...] = Field(
        default=(5, 20, 50, 100), min_length=1, description="Percent of the traffic at each canary step."
    )
    endpoint: Name = Field(default="deepseek", description="Name of the endpoint; the pipeline's name by default.")

    @model_validator(mode="before")
    @classmethod
    def _steps_of_strategy(cls, data: object) -> object:
        if isinstance(data, dict) and data.get("strategy") in ("blue-green", "shadow") and "steps" not in data:
            return {**data, "steps": (100,)}
        return data

    @field_validator("formats")
    @classmethod
    def _once_each(cls, value: tuple[ExportFormat, ...]) -> tuple[ExportFormat, ...]:
        return without_repeats(value)

    @field_validator("steps")
    @classmethod
    def _rise_to_100(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if value[-1] != 100 or any(left >= right for left, right in itertools.pairwise(value)):
            raise ValueError("the steps do not rise to 100; write for example [5, 20, 50, 100]")
        return value

    @model_validator(mode="after")
    def _steps_belong_to_canary(self) -> Deployment:
        if self.strategy != "canary" and self.steps != (100,):
            raise Problems((Problem(("steps",), f"{self.strategy} has no steps.", "Remove them, or use canary."),))
        return self


class Variant(Config):
    """A version that gets a share of the traffic."""

    version: VersionText = Field(description="Such as v1.3.0.")
    traffic: Percent = Field(description="Share of the users, such as 20%.")


class Experiment(Config):
    """An A/B test between released versions."""

    control: VersionText = Field(description="The version compared with; it gets the rest of the traffic.")
    variants: tuple[Variant, ...] = Field(min_length=1, description="Versions under test.")
    metrics: tuple[Word, ...] = Field(default=("latency",), min_length=1, description="The first one decides.")

    @field_validator("metrics")
    @classmethod
    def _once_each(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return without_repeats(value)

    @model_validator(mode="after")
    def _consistent(self) -> Experiment:
        problems = []
        versions = [self.control.removeprefix("v"), *(one.version.removeprefix("v") for one in self.variants)]
        for at, variant in enumerate(self.variants):
            if versions[at + 1] in versions[: at + 1]:
                place: tuple[str | int, ...] = ("variants", at, "version")
                problems.append(Problem(place, f"{variant.version} is in the experiment twice.", "Name it once."))
            if variant.traffic == 0:
                problems.append(Problem(("variants", at, "traffic"), "a variant without traffic.", "Use 1% or more."))
        total = sum(one.traffic for one in self.variants)
        if total >= 100:
            remedy = "Leave some traffic to the control."
            problems.append(Problem(("variants",), f"the variants get {total:g}% together.", remedy))
        if problems:
            raise Problems(tuple(problems))
        return self

    @property
    def control_traffic(self) -> float:
        """Percent that the control gets."""
        return 100.0 - sum(one.traffic for one in self.variants)


class ReleaseRules(Config):
    """When and how a registered version becomes a release."""

    tag: str = Field(default="deepseek-v{version}", description="Tag name; {version} and {name} are filled in.")
    approval: Literal["required", "none"] = Field(default="required", description="Whether a person must agree.")
    branches: tuple[Glob, ...] = Field(
        default=("main",), min_length=1, description="Branch globs whose models may be released."
    )

    @field_validator("tag")
    @classmethod
    def _template(cls, value: str) -> str:
        rest = value.replace("{version}", "1.2.3", 1).replace("{name}", "name", 1)
        if "{version}" not in value:
            raise ValueError("the tag must contain {version}, such as deepseek-v{version}")
        bad = any(character in rest for character in " ~^:?*[\\{}") or ".." in rest or rest.startswith(("-", "/"))
        if bad or rest.endswith((".lock", "/", ".")) or any(ord(character) < 33 for character in rest):
            raise ValueError("this does not make a Git tag name; write letters, digits, '-', '_', '.' or '/'")
        return value

    def allows(self, branch: str) -> bool:
        """Return whether a model of this branch (short name) may be released."""
        return matches_ref(self.branches, branch)

    def tag_name(self, *, name: str, version: str) -> str:
        """Return the tag of a version, given without ``v``."""
        return self.tag.replace("{version}", version).replace("{name}", name)
