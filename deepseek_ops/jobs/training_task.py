"""What a sample is and what its loss is: the part of a training that depends on its method."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, cast

from deepseek_ops.jobs.conversations import IGNORED
from deepseek_ops.jobs.training_splits import Conversations, Documents, Samples
from deepseek_ops.jobs.training_splits import Split as Split  # noqa: PLC0414  (re-exported: what the loop hands back)
from deepseek_ops.training.batches import Indices

if TYPE_CHECKING:
    import torch

    from deepseek_ops.jobs.training_model import ExpertBalance


@dataclass(frozen=True, slots=True)
class Batch:
    """Samples on this rank's device."""

    inputs: torch.Tensor
    """Token ids, shape (samples, length), int64."""
    targets: torch.Tensor
    """The token to predict at each place, or IGNORED, shape (samples, length), int64."""
    weight: float
    """What the summed loss of the batch is multiplied by before going backward."""
    positions: torch.Tensor | None = None
    """Place of each token in its own text, shape (samples, length), int64; None: a sample is one text."""
    used: torch.Tensor | None = None
    """Which places are not padding, shape (samples x length), bool; None: all."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Sums over a batch, from which means over any union of batches can be made."""

    loss: float
    """Nats, summed over the counted tokens."""
    tokens: int
    """Tokens that count."""
    correct: int = 0
    """Tokens of those that the model would have chosen."""


class Task(Protocol):
    """How a method makes a batch of samples and a loss of a batch."""

    def batch(self, split: Split, indices: Iterable[int]) -> Batch:
        """Return samples on this rank's device."""

    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the loss to go backward from; its mean over micro-batches and ranks is the batch's, in nats."""

    def measure(self, model: torch.nn.Module, batch: Batch, counted: int) -> Measured:
        """Return the loss of the first ``counted`` samples; the others are there so that all ranks do as much."""


class _Predicting:
    """Loss of predicting the next token, wherever a target says so."""

    def __init__(self, device: str) -> None:
        self.device = device

    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the weighted loss to go backward from."""
        return summed_loss(_logits(model, batch), batch.targets) * batch.weight

    def measure(self, model: torch.nn.Module, batch: Batch, counted: int) -> Measured:
        """Return the loss of the first ``counted`` samples; the others are there so that all ranks do as much."""
        logits, targets = _logits(model, batch)[:counted], batch.targets[:counted]
        predicted = targets != IGNORED
        return Measured(
            loss=float(summed_loss(logits, targets)),
            tokens=int(predicted.sum()),
            correct=int(((logits.argmax(-1) == targets) & predicted).sum()),
        )


class DocumentTask(_Predicting):
    """Every token of running text is predicted from those before it."""

    def batch(self, split: Split, indices: Iterable[int]) -> Batch:
        """Return samples whose loss is the mean over their tokens."""
        import torch

        ids = torch.from_numpy(cast("Documents", split).samples(indices)).to(self.device)
        inputs, targets = ids[:, :-1], ids[:, 1:]
        return Batch(inputs, targets, 1.0 / max(1, targets.numel()))


class ChatTask(_Predicting):
    """Only answers are predicted; several conversations share a window without seeing each other.

    Positions start again with each conversation: transformers makes the block-diagonal attention of it. The loss is the
    mean over the answer tokens of the *global* batch, so neither the number of ranks nor accumulation changes what one
    answer weighs: a mean per micro-batch would favour windows with few answers. Every rank looks the count up.
    """

    def __init__(self, device: str, balance: ExpertBalance) -> None:
        super().__init__(device)
        self._balance = balance

    def batch(self, split: Split, indices: Iterable[int]) -> Batch:
        """Return windows weighted by the answers of the global batch that ``indices`` are a part of."""
        import numpy as np
        import torch

        source = cast("Conversations", split)
        chosen = indices if isinstance(indices, Indices) else tuple(indices)
        windows = [source.window(index) for index in chosen]
        whole, parts = (chosen.whole, chosen.parts) if isinstance(chosen, Indices) else (chosen, 1)
        answers = sum(map(source.answers, whole))
        inputs, targets, positions = (
            torch.from_numpy(np.stack(arrays)).to(self.device)
            for arrays in zip(*((one.inputs, one.targets, one.positions) for one in windows), strict=True)
        )
        used = np.concatenate([np.arange(split.length) < window.size for window in windows])
        return Batch(inputs, targets, parts / max(1, answers), positions, torch.from_numpy(used).to(self.device))

    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """Return the weighted loss to go backward from; padding does not count as load of the experts."""
        self._balance.only(batch.used)
        return super().loss(model, batch)


def open_task(samples: Samples, device: str, balance: ExpertBalance) -> Task:
    """Return the task of these samples."""
    return ChatTask(device, balance) if samples.of_conversations else DocumentTask(device)


def summed_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy summed over all targets that are not IGNORED, in nats.

    Args:
        logits: Shape (samples, length, vocabulary), any float dtype. Computed in float32: bfloat16 loses small
            differences over a large vocabulary.
        targets: Shape (samples, length), int64.
    """
    import torch

    return torch.nn.functional.cross_entropy(
        logits.float().reshape(-1, logits.shape[-1]), targets.reshape(-1), ignore_index=IGNORED, reduction="sum"
    )


def mean_loss(model: torch.nn.Module, batch: Batch) -> float:
    """Return the mean loss of ``model`` over the targets of a batch, in nats per token, without gradients."""
    import torch

    with torch.no_grad():
        total = summed_loss(_logits(model, batch), batch.targets)
        return float(total) / max(1, int((batch.targets != IGNORED).sum()))


def _logits(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    places = {} if batch.positions is None else {"position_ids": batch.positions}
    logits: torch.Tensor = model(input_ids=batch.inputs, use_cache=False, **places).logits
    return logits
