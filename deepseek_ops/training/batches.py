"""Which samples a rank sees in a step: a pure function, so there is no sampler state to save, lose or repeat.

Each epoch is a permutation of all samples, computed point by point with a Feistel network: nothing is materialised,
a restart at step 1,000,000 costs as much as step 0, and any two world sizes see the same global batch.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from deepseek_ops.training.errors import IndivisibleBatchError, TooFewSamplesError

_ROUNDS = 6
_MASK64 = (1 << 64) - 1
_OLD = 1 << 40


class Indices(tuple[int, ...]):  # noqa: SLOT001  (a tuple's subclass cannot name slots of its own)
    """Sample indices of one micro-batch that know the global batch they are a part of.

    A loss that is a mean over *some* tokens has to know how many of them the other ranks and micro-batches hold; as
    batches are a pure function of the step, every rank can look that up, and nothing is communicated.
    """

    _plan: BatchPlan
    _step: int

    @classmethod
    def of(cls, plan: BatchPlan, step: int, indices: tuple[int, ...]) -> Indices:
        """Return ``indices`` as a part of the batch of ``step``."""
        made = cls(indices)
        made._plan, made._step = plan, step
        return made

    @property
    def whole(self) -> tuple[int, ...]:
        """The global batch."""
        return _global_batch(self._plan, self._step)

    @property
    def parts(self) -> int:
        """Micro-batches that make the global batch, over all ranks."""
        return self._plan.accumulation_steps * self._plan.world_size


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """How the global batch of every step is cut: first over ranks, then into micro-batches.

    With ``replay_share``, that share of all samples comes from ``replay_samples`` old ones, whose indices follow the
    new ones (``num_samples`` and up). The share is exact over any number of steps to within one sample, and both kinds
    are spread evenly over the batch.
    """

    seed: int
    num_samples: int
    batch_size: int
    world_size: int = 1
    micro_batch_size: int = 1
    replay_samples: int = 0
    replay_share: float = 0.0

    def __post_init__(self) -> None:
        if self.num_samples < 1:
            raise TooFewSamplesError(self.num_samples, 1)
        if self.replay_share and self.replay_samples < 1:
            raise TooFewSamplesError(self.replay_samples, 1, "replayed train")
        if self.batch_size % (self.world_size * self.micro_batch_size):
            raise IndivisibleBatchError(self.batch_size, self.micro_batch_size, self.world_size)

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches per optimiser step on each rank."""
        return self.batch_size // (self.world_size * self.micro_batch_size)

    @property
    def epoch_samples(self) -> int:
        """Samples, old ones included, after which every new sample was seen once."""
        return math.ceil(self.num_samples / (1 - _share(self.replay_share)))

    def global_batch(self, step: int) -> tuple[int, ...]:
        """Return the sample indices of optimiser step ``step`` (from 0), the same for every world size."""
        return self._samples(step * self.batch_size, self.batch_size)

    def rank_batch(self, step: int, rank: int) -> tuple[int, ...]:
        """Return the share of ``rank``: a contiguous slice, so that the ranks in order make the global batch."""
        share = self.batch_size // self.world_size
        return self._samples(step * self.batch_size + rank * share, share)

    def micro_batches(self, step: int, rank: int) -> Iterator[Indices]:
        """Yield the share of ``rank`` in micro-batches."""
        share = self.rank_batch(step, rank)
        for start in range(0, len(share), self.micro_batch_size):
            yield Indices.of(self, step, share[start : start + self.micro_batch_size])

    def _samples(self, start: int, count: int) -> tuple[int, ...]:
        if not self.replay_share:
            return tuple(self._new(position) for position in range(start, start + count))
        share = _share(self.replay_share)
        chosen = []
        for position in range(start, start + count):
            before, after = math.floor(position * share), math.floor((position + 1) * share)
            chosen.append(self._old(before) if after > before else self._new(position - before))
        return tuple(chosen)

    def _new(self, position: int) -> int:
        return permuted(position % self.num_samples, self.num_samples, self.seed, position // self.num_samples)

    def _old(self, position: int) -> int:
        # another seed: old data of the same size must not come in the order of the new
        size = self.replay_samples
        return self.num_samples + permuted(position % size, size, self.seed ^ _OLD, position // size)


@lru_cache(maxsize=2)
def _global_batch(plan: BatchPlan, step: int) -> tuple[int, ...]:
    return plan.global_batch(step)


@lru_cache(maxsize=8)
def _share(share: float) -> Fraction:
    """Return the decimal that was written: 0.2 is a fifth, not the nearest binary fraction."""
    return Fraction(repr(share))


def permuted(index: int, size: int, seed: int, epoch: int) -> int:
    """Return where ``index`` lands in the permutation of ``range(size)`` that (seed, epoch) names.

    The network permutes the next larger power of four; values outside ``range(size)`` are walked through it again until
    they fall inside (fewer than four rounds on average), which keeps it a permutation.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    keys = _round_keys(seed, epoch)
    value = _feistel(index, half, keys)
    while value >= size:
        value = _feistel(value, half, keys)
    return value


def _feistel(value: int, half: int, keys: tuple[int, ...]) -> int:
    mask = (1 << half) - 1
    left, right = value >> half, value & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << half) | right


def _mix(value: int) -> int:
    """Return 64 well mixed bits (the finaliser of SplitMix64)."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & _MASK64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & _MASK64
    return value ^ (value >> 31)


@lru_cache(maxsize=8)
def _round_keys(seed: int, epoch: int) -> tuple[int, ...]:
    block = hashlib.blake2b(f"{seed}/{epoch}".encode(), digest_size=8 * _ROUNDS).digest()
    return tuple(int.from_bytes(block[8 * i : 8 * i + 8], "little") for i in range(_ROUNDS))
