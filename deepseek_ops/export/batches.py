"""Token batches to trace with and to compare on.

An exporter sees one batch and may bake its shape, its padding or the path of its tokens into the graph. So the traced
batch is padded (an all-ones mask would drop ``attention_mask`` from the graph), and every batch that counts for parity
has another shape than the traced one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deepseek_ops.export.errors import SampleError

TRACE_ROWS, TRACE_LENGTH = 2, 12
HELD_OUT_SHAPES = ((1, 1), (1, 9), (3, 33), (4, 128))
"""(rows, longest row): one token as in decoding, one row without padding, and two padded batches."""
MIN_TOKENS = 4


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Left-padded rows of token ids."""

    ids: tuple[tuple[int, ...], ...]
    mask: tuple[tuple[int, ...], ...]
    """1 where a token counts, 0 where it pads."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return len(self.ids), len(self.ids[0])

    @property
    def num_tokens(self) -> int:
        return sum(map(sum, self.mask))


def padded(rows: Sequence[Sequence[int]], pad: int) -> TokenBatch:
    """Return the rows left-padded to the longest."""
    width = max(len(row) for row in rows)
    return TokenBatch(
        ids=tuple((*[pad] * (width - len(row)), *row) for row in rows),
        mask=tuple((*[0] * (width - len(row)), *[1] * len(row)) for row in rows),
    )


def plan_batches(
    rows: Sequence[Sequence[int]], *, pad: int, vocab_size: int, max_length: int
) -> tuple[TokenBatch, list[TokenBatch]]:
    """Return the batch to trace with and the held-out batches, all cut from the sample.

    Args:
        rows: Token ids of the sample, one sequence a text.
        pad: Token id of the padding.
        vocab_size: Ids must be below this.
        max_length: Longest sequence the model knows positions for.

    Raises:
        SampleError: Too few tokens, or an id the model does not know.
    """
    stream = [token for row in rows for token in row]
    if len(stream) < MIN_TOKENS:
        raise SampleError(f"it has {len(stream)} tokens")
    if max(stream) >= vocab_size or min(stream) < 0:
        raise SampleError(f"token id {max(stream)} does not fit the model's vocabulary of {vocab_size}")
    cut = _Cut(stream)
    trace_length = min(TRACE_LENGTH, max_length)
    traced = padded([cut.take(max(1, trace_length - 4 * row)) for row in range(TRACE_ROWS)], pad)
    held_out: list[TokenBatch] = []
    for num_rows, longest in HELD_OUT_SHAPES:
        length = min(longest, max_length)
        batch = padded([cut.take(max(1, length - 5 * row)) for row in range(num_rows)], pad)
        if batch.shape not in [traced.shape, *(seen.shape for seen in held_out)]:
            held_out.append(batch)
    return traced, held_out


class _Cut:
    """Takes runs of tokens one after the other, from the start again when the sample is used up."""

    def __init__(self, stream: Sequence[int]) -> None:
        self._stream = stream
        self._at = 0

    def take(self, count: int) -> list[int]:
        run = [self._stream[(self._at + offset) % len(self._stream)] for offset in range(count)]
        self._at += count
        return run
