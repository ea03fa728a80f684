"""What a rank knows of its peers, and the few collectives of the training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass
class Ranks:
    """What this process needs to know of its peers."""

    rank: int
    world_size: int
    device: str
    stop_requested: Callable[[], bool]

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Return the float64 vector summed over all ranks, on the CPU."""
        import torch.distributed as dist

        sent = values.to(self.device)
        if self.world_size > 1:
            dist.all_reduce(sent)
        return sent.cpu()

    def from_first(self, value: int) -> int:
        """Return rank 0's value on every rank."""
        return int(self.numbers_from_first([float(value)])[0])

    def numbers_from_first(self, values: Sequence[float]) -> list[float]:
        """Return rank 0's numbers on every rank; all give equally many. Integers are exact up to 2^53."""
        import torch
        import torch.distributed as dist

        if self.world_size == 1:
            return list(values)
        sent = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.broadcast(sent, src=0)
        return [float(value) for value in sent.tolist()]

    def barrier(self) -> None:
        """Wait for all ranks."""
        import torch.distributed as dist

        if self.world_size > 1:
            dist.barrier()
