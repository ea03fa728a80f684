"""Small parts of a Trainer's loop: what its batches and logs hold, its learning rate, its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from transformers import Trainer


def unless_done(trainer: Trainer, run: Callable[..., object]) -> Callable[..., object]:
    """Return the Trainer's method, which does nothing any more once its last step is done."""

    def run_epoch(*args: object, **words: object) -> object:
        if trainer.state.global_step >= trainer.state.max_steps:
            trainer.control.should_training_stop = True
            return None
        return run(*args, **words)

    return run_epoch


def lower(scheduler: object, groups: list[dict[str, float]], factor: float) -> None:
    """Multiply the rate of the next steps: that of schedules is their base times a function of the step."""
    inner = getattr(scheduler, "scheduler", scheduler)  # accelerate wraps it
    if hasattr(inner, "base_lrs"):
        inner.base_lrs = [rate * factor for rate in inner.base_lrs]
    for group in groups:
        group["lr"] *= factor


def numbers(values: Mapping[str, object]) -> dict[str, float]:
    """Return the values that are numbers."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


def are_ids(key: str, value: object) -> bool:
    """Return whether a part of a batch is token ids, (samples, length)."""
    return key.endswith("input_ids") and isinstance(value, torch.Tensor) and value.ndim == 2


def used(inputs: Mapping[str, object]) -> int:
    """Return the tokens of a micro-batch, padding included: counting it would wait for the device."""
    return sum(
        value.numel() for key, value in inputs.items() if are_ids(key, value) and isinstance(value, torch.Tensor)
    )
