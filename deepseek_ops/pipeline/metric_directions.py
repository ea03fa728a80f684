"""Which way of a metric is better: what a pipeline file declares, and what we measure ourselves; of others nothing."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from deepseek_ops.core.config import PipelineFile
from deepseek_ops.core.config.base import Direction

OURS: Mapping[str, Direction] = MappingProxyType(
    {
        "val_loss": "minimize",
        "training_loss": "minimize",
        "perplexity": "minimize",
        "bits_per_byte": "minimize",
        "top1_accuracy": "maximize",
    }
)
"""Metrics of our own trainer and evaluation. A name alone says nothing: ``reward`` and ``recall`` are the team's."""


def directions_of(config: PipelineFile | None) -> dict[str, Direction]:
    """Return metric -> direction: ours, over them what the sweep searches by, over that what the gates judge by."""
    found = dict(OURS)
    if config is not None:
        found[config.sweep.metric] = config.sweep.direction
        found[config.validation.metric] = config.validation.direction
    return found


def agreed(one: Mapping[str, Direction], other: Mapping[str, Direction]) -> dict[str, Direction]:
    """Return what two files do not declare against each other."""
    return {name: way for name, way in {**one, **other}.items() if way == one.get(name, way)}
