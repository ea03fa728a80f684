"""Token shards: a split as a few flat files of integers, read by memory mapping.

``<split>-00000.bin`` holds the token ids of whole documents, each closed by the end token, as little-endian uint16
(uint32 for vocabularies above 65,536). ``<split>-00000.json`` beside it gives dtype, counts and the start of each
document. A *sample* is ``length + 1`` consecutive ids whose starts are ``length`` apart, so every token of a shard is
predicted exactly once; the rest of a shard that is shorter than a sample is left out.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from deepseek_ops.core.errors import PermanentError
from deepseek_ops.training.errors import TooFewSamplesError

if TYPE_CHECKING:
    from numpy import ndarray

SHARD_TOKENS = 32 * 1024 * 1024
FORMAT = 1
DType = Literal["uint16", "uint32"]


@dataclass(eq=False)
class TokenShardError(PermanentError):
    """A token shard is not what its index says."""

    path: str
    problem: str

    def __str__(self) -> str:
        return f"token shard {self.path}: {self.problem}; prepare the dataset again."


class TokenWriter:
    """Writes one split, document by document, straight to its shard; the same documents give the same bytes."""

    def __init__(self, folder: Path, split: str, *, vocab_size: int, shard_tokens: int = SHARD_TOKENS) -> None:
        self.folder = folder
        self.split = split
        self.num_tokens = 0
        self.num_documents = 0
        self._dtype: DType = "uint16" if vocab_size <= 1 << 16 else "uint32"
        self._width = 2 if self._dtype == "uint16" else 4
        self._shard_tokens = shard_tokens
        self._shard = 0
        self._file: BinaryIO | None = None
        self._starts: list[int] = []
        self._held = 0
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, ids: Sequence[int]) -> None:
        """Append one document with its end token."""
        import numpy as np

        if self._file is None:
            self._file = self._stem().with_suffix(".bin").open("wb")
        self._starts.append(self._held)
        self._file.write(np.asarray(ids, dtype=f"<u{self._width}").tobytes())
        self._held += len(ids)
        self.num_tokens += len(ids)
        self.num_documents += 1
        if self._held >= self._shard_tokens:
            self._flush()

    def close(self) -> None:
        """Write what is left."""
        if self._starts:
            self._flush()

    def _stem(self) -> Path:
        return self.folder / f"{self.split}-{self._shard:05d}"

    def _flush(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        index = {"format": FORMAT, "dtype": self._dtype, "num_tokens": self._held, "documents": self._starts}
        self._stem().with_suffix(".json").write_text(json.dumps(index, separators=(",", ":")) + "\n")
        self._shard += 1
        self._starts, self._held = [], 0


class TokenSplit:
    """The samples of one split. Opening it reads only the indices; samples come from the page cache.

    Raises:
        TokenShardError: A shard is missing, cut, or of another format.
        TooFewSamplesError: The split does not hold a single sample of this length.
    """

    def __init__(self, folder: Path, split: str, *, length: int) -> None:
        self.split = split
        self.length = length
        self._shards = [_open(path) for path in sorted(folder.glob(f"{split}-*.json"))]
        self._ends: list[int] = []
        total = 0
        for shard in self._shards:
            total += max(0, (len(shard) - 1) // length)
            self._ends.append(total)
        if not total:
            raise TooFewSamplesError(0, 1, split)

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def num_tokens(self) -> int:
        """Tokens that are predicted in one pass."""
        return len(self) * self.length

    def samples(self, indices: Iterable[int]) -> ndarray:
        """Return the samples as int64, shape (number of indices, length + 1)."""
        import numpy as np

        samples: ndarray = np.stack([self._sample(index) for index in indices])
        return samples

    def _sample(self, index: int) -> ndarray:
        shard = bisect_right(self._ends, index)
        start = (index - (self._ends[shard - 1] if shard else 0)) * self.length
        return self._shards[shard][start : start + self.length + 1].astype("int64")


def _open(index_path: Path) -> ndarray:
    import numpy as np

    index = json.loads(index_path.read_text())
    if index.get("format") != FORMAT or index.get("dtype") not in ("uint16", "uint32"):
        raise TokenShardError(index_path.name, f"format {index.get('format')!r} is not {FORMAT}")
    path = index_path.with_suffix(".bin")
    width = 2 if index["dtype"] == "uint16" else 4
    expected, actual = index["num_tokens"] * width, path.stat().st_size if path.is_file() else 0
    if expected != actual:
        raise TokenShardError(path.name, f"it has {actual} bytes and its index says {expected}")
    return np.memmap(path, dtype=f"<u{width}", mode="r")
