"""How ranks tell each other small facts: JSON over the group's own collectives, called by every rank together."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Protocol

from pydantic import JsonValue

if TYPE_CHECKING:
    import torch


class Peers(Protocol):
    """What a rank knows of the others."""

    rank: int
    world_size: int
    device: str

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """Return the float64 vector summed over all ranks, on the CPU."""

    def from_first(self, value: int) -> int:
        """Return rank 0's value on every rank."""

    def barrier(self) -> None:
        """Wait for all ranks."""


def told_by_first(peers: Peers, value: JsonValue) -> JsonValue:
    """Return rank 0's ``value`` on every rank."""
    import torch
    import torch.distributed as dist

    if peers.world_size == 1:
        return value
    said = json.dumps(value).encode() if peers.rank == 0 else b""
    size = peers.from_first(len(said))
    sent = torch.zeros(size, dtype=torch.uint8)
    if peers.rank == 0:
        sent = torch.frombuffer(bytearray(said), dtype=torch.uint8)
    sent = sent.to(peers.device)
    dist.broadcast(sent, src=0)
    heard: JsonValue = json.loads(bytes(sent.cpu().tolist()))
    return heard


def told_by_all(peers: Peers, value: JsonValue) -> list[JsonValue]:
    """Return every rank's ``value``, by rank, on every rank."""
    import torch
    import torch.distributed as dist

    if peers.world_size == 1:
        return [value]
    said = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
    sizes = torch.zeros(peers.world_size, dtype=torch.float64)
    sizes[peers.rank] = len(said)
    sizes = peers.total(sizes)
    own = torch.zeros(int(sizes.max()), dtype=torch.uint8)
    own[: len(said)] = said
    own = own.to(peers.device)
    heard = [torch.empty_like(own) for _ in range(peers.world_size)]
    dist.all_gather(heard, own)
    return [json.loads(bytes(one[: int(size)].cpu().tolist())) for one, size in zip(heard, sizes.tolist(), strict=True)]


def any_rank(peers: Peers, flag: bool) -> bool:
    """Return whether the flag is set on any rank."""
    import torch

    return bool(peers.total(torch.tensor([float(flag)], dtype=torch.float64)).item())
