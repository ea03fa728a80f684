"""What a sample is and what its loss is: the part of a training that depends on its method."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepseek_ops.jobs.tokens import TokenSplit
from deepseek_ops.jobs.training_engine import next_token_loss

if TYPE_CHECKING:
    import torch

Split = TokenSplit


@dataclass(frozen=True, slots=True)
class Measured:
    """Sums over a batch, from which means over any union of batches can be made."""

    loss: float
    """Nats, summed over the counted tokens."""
    tokens: int
    """Tokens that count."""


class Task:
    """Pre-training: every token is predicted from those before it."""

    def __init__(self, device: str) -> None:
        self.device = device

    def batch(self, split: Split, indices: Iterable[int]) -> torch.Tensor:
        """Return samples as token ids on this rank's device, shape (number of indices, length + 1)."""
        import torch

        return torch.from_numpy(split.samples(indices)).to(self.device)

    def loss(self, model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
        """Return the loss to go backward from: the mean over the batch's tokens, in nats."""
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        return next_token_loss(logits, batch[:, 1:])

    def measure(self, model: torch.nn.Module, batch: torch.Tensor, counted: int) -> Measured:
        """Return the loss of the first ``counted`` samples; the others are there so that all ranks do as much."""
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = next_token_loss(logits[:counted], batch[:counted, 1:], reduction="sum")
        return Measured(loss=float(loss), tokens=counted * (batch.shape[1] - 1))
