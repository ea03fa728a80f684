"""The stages of a pipeline file as work: what to evaluate, for how long, against whom."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from deepseek_ops.core.config import Validation
from deepseek_ops.core.config.base import Direction
from deepseek_ops.core.records import Name, Record


class StagePlan(Record):
    """One validation stage, complete in itself: a mapped task needs nothing else of the pipeline file."""

    name: Name
    selection: Name = Field(description="Name of the dataset selection, such as small-test-set.")
    split: Literal["train", "val", "test"] = "test"
    max_items: int | None = Field(default=None, ge=1, description="First items by content hash; None = all.")
    timeout_seconds: float = Field(gt=0)
    against: Literal["none", "champion"] = "none"
    margin: float | None = Field(default=None, gt=0, description="Acceptable degradation, metric units.")
    metric: str = "val_loss"
    direction: Direction = "minimize"
    confidence: float = Field(default=0.95, gt=0.5, lt=1, description="Of each one-sided bound.")

    @model_validator(mode="after")
    def _margin_and_champion(self) -> StagePlan:
        if (self.margin is None) != (self.against == "none"):
            raise ValueError("margin and against: champion belong together")
        return self

    def dataset(self, version: str) -> str:
        """Return the identity of what is evaluated, such as ``<version>/test[:64]``, for ``Evaluation.dataset``."""
        return f"{version}/{self.split}" + (f"[:{self.max_items}]" if self.max_items else "")


def plan_stages(config: Validation) -> tuple[StagePlan, ...]:
    """Return one plan per stage, in file order."""
    return tuple(
        StagePlan(
            name=stage.name,
            selection=stage.dataset,
            split=config.datasets[stage.dataset].split,
            max_items=config.datasets[stage.dataset].max_items,
            timeout_seconds=stage.timeout.total_seconds(),
            against=stage.against,
            margin=stage.margin,
            metric=config.metric,
            direction=config.direction,
            confidence=config.confidence,
        )
        for stage in config.stages
    )
