"""Experiment trackers: mirrors of what the facts, the store and Git hold, for teams that look there."""

from __future__ import annotations

from deepseek_ops.adapters.trackers.mlflow import MLflowTracker
from deepseek_ops.adapters.trackers.wandb import WandbTracker

__all__ = ["MLflowTracker", "WandbTracker"]
