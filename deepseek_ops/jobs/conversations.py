"""Conversation shards: tokenised conversations with their answers marked, read by memory mapping and packed.

Below ``conversations/``, per shard: ``<split>-00000.ids`` (token ids, little-endian uint16 or uint32),
``<split>-00000.answers`` (uint8 per token, 1 where it is part of an answer), ``<split>-00000.index`` (int64 pairs: end
of the conversation, its answer tokens) and ``<split>-00000.json`` (format, dtype, counts).

A sample of a training is a *window*: several whole conversations, each predicted from itself alone, padded at the end.
Conversations that do not fit into a window are cut behind it; what then has no answer left is left out.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pydantic import JsonValue

from deepseek_ops.jobs.tokens import TokenShardError
from deepseek_ops.training.errors import TooFewSamplesError
from deepseek_ops.training.packing import Packing, pack

if TYPE_CHECKING:
    from numpy import ndarray

CONVERSATIONS = "conversations"
FORMAT = 1
SHARD_TOKENS = 32 * 1024 * 1024


class ConversationWriter:
    """Writes the conversations of one split; the same conversations give the same bytes."""

    def __init__(self, folder: Path, split: str, *, vocab_size: int, shard_tokens: int = SHARD_TOKENS) -> None:
        self.num_conversations = 0
        self.num_tokens = 0
        self.num_answer_tokens = 0
        self._folder = folder
        self._split = split
        self._width = 2 if vocab_size <= 1 << 16 else 4
        self._shard_tokens = shard_tokens
        self._shard = 0
        self._held = [0, 0]
        self._open: ExitStack | None = None
        self._files: dict[str, IO[bytes]] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, ids: Sequence[int], answers: Sequence[bool]) -> None:
        """Append one conversation."""
        import numpy as np

        if self._open is None:
            self._open = ExitStack()
            self._files = {
                kind: self._open.enter_context(self._path(kind).open("wb")) for kind in ("ids", "answers", "index")
            }
        self._held[0] += 1
        self._held[1] += len(ids)
        learned = sum(answers)
        self._files["ids"].write(np.asarray(ids, dtype=f"<u{self._width}").tobytes())
        self._files["answers"].write(np.asarray(answers, dtype="u1").tobytes())
        self._files["index"].write(np.asarray([self._held[1], learned], dtype="<i8").tobytes())
        self.num_conversations += 1
        self.num_tokens += len(ids)
        self.num_answer_tokens += learned
        if self._held[1] >= self._shard_tokens:
            self._flush()

    def close(self) -> None:
        """Write what is left."""
        if self._open is not None:
            self._flush()

    def _path(self, kind: str) -> Path:
        return self._folder / f"{self._split}-{self._shard:05d}.{kind}"

    def _flush(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None
        header = {"format": FORMAT, "width": self._width, "conversations": self._held[0], "tokens": self._held[1]}
        self._path("json").write_text(json.dumps(header, separators=(",", ":")) + "\n")
        self._shard += 1
        self._held = [0, 0]


@dataclass(frozen=True, slots=True)
class Window:
    """One sample: arrays of ``length`` places each."""

    inputs: ndarray
    targets: ndarray
    """The token that follows, where it is part of an answer; IGNORED elsewhere."""
    positions: ndarray
    """Place within the conversation: a 0 starts another one."""
    size: int
    """Places in use; padding follows."""


IGNORED = -100
"""Target that is not predicted, as in torch's cross-entropy."""


class ConversationSplit:
    """The windows of one split. Opening it reads the indices; conversations come from the page cache.

    Raises:
        TokenShardError: A shard is missing, cut, or of another format.
        TooFewSamplesError: The split has no conversation with an answer.
    """

    def __init__(self, folder: Path, split: str, *, length: int, pad: int) -> None:
        import numpy as np

        self.split = split
        self.length = length
        self._pad = pad
        self._shards = [_Shard.open(path) for path in sorted(folder.glob(f"{split}-*.json"))]
        self._firsts: list[int] = []
        total = 0
        for shard in self._shards:
            self._firsts.append(total)
            total += len(shard.ends)
        kept = [shard.within(length) for shard in self._shards]
        self._sizes = np.concatenate([sizes for sizes, _, _ in kept]) if kept else np.zeros(0, dtype="int64")
        answers = np.concatenate([count for _, count, _ in kept]) if kept else np.zeros(0, dtype="int64")
        self._packing: Packing = pack(self._sizes.tolist(), length)
        if not len(self._packing):
            raise TooFewSamplesError(0, 1, split)
        grouped = answers[np.frombuffer(self._packing.order, dtype="int64")]
        self._answers = np.add.reduceat(grouped, np.frombuffer(self._packing.starts, dtype="int64")[:-1])
        self._cut = sum(cut for _, _, cut in kept)

    def __len__(self) -> int:
        return len(self._packing)

    def answers(self, index: int) -> int:
        """Return how many tokens of a window are predicted and count."""
        return int(self._answers[index])

    def window(self, index: int) -> Window:
        """Return a sample."""
        import numpy as np

        inputs: ndarray = np.full(self.length, self._pad, dtype="int64")
        targets: ndarray = np.full(self.length, IGNORED, dtype="int64")
        positions: ndarray = np.arange(self.length, dtype="int64")
        at = 0
        for member in self._packing.window(index):
            size = int(self._sizes[member])
            ids, answers = self._conversation(member, size + 1)
            place = slice(at, at + size)
            inputs[place], positions[place] = ids[:-1], np.arange(size)
            targets[place] = np.where(answers[1:] > 0, ids[1:], IGNORED)
            at += size
        positions[at:] -= at
        return Window(inputs, targets, positions, at)

    def facts(self) -> dict[str, JsonValue]:
        """Return how the conversations were packed, for people."""
        used = int(self._sizes.sum())
        return {
            "split": self.split,
            "conversations": len(self._packing.order),
            "windows": len(self),
            "truncated": self._cut,
            "dropped": len(self._sizes) - len(self._packing.order),
            "filled": round(used / (len(self) * self.length), 4),
            "answer_tokens": int(self._answers.sum()),
        }

    def _conversation(self, number: int, tokens: int) -> tuple[ndarray, ndarray]:
        shard = bisect_right(self._firsts, number) - 1
        found = self._shards[shard]
        start = found.start(number - self._firsts[shard])
        return found.ids[start : start + tokens].astype("int64"), found.answers[start : start + tokens]


@dataclass(frozen=True, slots=True)
class _Shard:
    ids: ndarray
    answers: ndarray
    ends: ndarray
    counts: ndarray

    @classmethod
    def open(cls, header_path: Path) -> _Shard:
        import numpy as np

        header = json.loads(header_path.read_text())
        if header.get("format") != FORMAT or header.get("width") not in (2, 4):
            raise TokenShardError(header_path.name, f"format {header.get('format')!r} is not {FORMAT}")
        width, tokens, conversations = header["width"], header["tokens"], header["conversations"]
        expected = {"ids": tokens * width, "answers": tokens, "index": conversations * 16}
        for kind, size in expected.items():
            path = header_path.with_suffix(f".{kind}")
            actual = path.stat().st_size if path.is_file() else 0
            if actual != size:
                raise TokenShardError(path.name, f"it has {actual} bytes and its index says {size}")
        index: ndarray = np.memmap(header_path.with_suffix(".index"), dtype="<i8", mode="r").reshape(-1, 2)
        return cls(
            np.memmap(header_path.with_suffix(".ids"), dtype=f"<u{width}", mode="r"),
            np.memmap(header_path.with_suffix(".answers"), dtype="u1", mode="r"),
            index[:, 0],
            index[:, 1],
        )

    def start(self, number: int) -> int:
        return int(self.ends[number - 1]) if number else 0

    def within(self, length: int) -> tuple[ndarray, ndarray, int]:
        """Return places and answer tokens of each conversation within a window, and how many are cut but kept.

        A conversation of n tokens fills n - 1 places, since its last token is only predicted; 0 places: left out.
        """
        import numpy as np

        places = np.diff(self.ends, prepend=0) - 1
        counts = np.array(self.counts)
        # its first token is never predicted; a template that starts with an answer would count it
        starts = self.ends - places - 1
        counts -= self.answers[starts]
        longer = np.flatnonzero(places > length)
        for number in longer:
            first = int(starts[number]) + 1
            counts[number] = int(self.answers[first : first + length].sum())
        sizes = np.where(counts > 0, np.minimum(places, length), 0)
        return sizes, counts, int((counts[longer] > 0).sum())
