"""The files of a dataset version while they are written: documents and tokens of each split, in shards."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from pydantic import JsonValue

from deepseek_ops.data.content.profile import SplitProfile
from deepseek_ops.jobs.chat import MESSAGES, ChatRenderer
from deepseek_ops.jobs.conversations import CONVERSATIONS, ConversationWriter
from deepseek_ops.jobs.tokens import TokenWriter
from deepseek_ops.jobs.training_data import DOCUMENTS, TOKENIZER, TOKENS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SHARD_BYTES = 64 << 20
_BATCH = 256
_BATCH_CHARACTERS = 256 << 10


class SplitFiles:
    """The open files of all splits; documents are tokenised in batches, on all cores."""

    def __init__(
        self, target: Path, splits: Sequence[str], tokenizer: Tokenizer, end: int,
        profiles: Mapping[str, SplitProfile], fields: Sequence[str], shard_bytes: int,
    ) -> None:  # fmt: skip
        self._tokenizer = tokenizer
        self._end = end
        self._profiles = profiles
        self._fields = fields
        size = tokenizer.get_vocab_size()
        (target / DOCUMENTS).mkdir()
        self.tokens = {name: TokenWriter(target / TOKENS, name, vocab_size=size) for name in splits}
        self._texts = {name: DocumentShards(target / DOCUMENTS, name, shard_bytes) for name in splits}
        self._waiting: dict[str, list[str]] = {name: [] for name in splits}
        self._held = 0
        self._target = target
        self._renderer: ChatRenderer | None = None
        self.conversations: dict[str, ConversationWriter] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        for name in self._waiting:
            self._tokenise(name)
            self.tokens[name].close()
            self._texts[name].close()
        for writer in self.conversations.values():
            writer.close()

    def add(self, split: str, document: Mapping[str, JsonValue]) -> None:
        """Append a document to its split."""
        kept = {name: document[name] for name in self._fields if name in document}
        self._texts[split].write(json.dumps(kept, ensure_ascii=False) + "\n")
        if MESSAGES in document:
            self._converse(split, document)
        text = str(document["text"])
        self._waiting[split].append(text)
        self._held += len(text)
        if len(self._waiting[split]) >= _BATCH:
            self._tokenise(split)
        if self._held >= _BATCH_CHARACTERS:
            for name in self._waiting:
                self._tokenise(name)

    @property
    def own_template(self) -> bool:
        """Whether conversations were rendered with the tokenizer's own chat template."""
        return self._renderer is not None and not self._renderer.is_default

    def _converse(self, split: str, document: Mapping[str, JsonValue]) -> None:
        if self._renderer is None:
            self._renderer = ChatRenderer(self._target / TOKENIZER, self._tokenizer)
        if split not in self.conversations:
            self.conversations[split] = ConversationWriter(
                self._target / CONVERSATIONS, split, vocab_size=self._tokenizer.get_vocab_size()
            )
        listed = document[MESSAGES]
        messages = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
        for sample in self._renderer.render(str(document["id"]), messages):
            self.conversations[split].add(sample.ids, sample.answers)

    def _tokenise(self, split: str) -> None:
        texts, self._waiting[split] = self._waiting[split], []
        self._held -= sum(map(len, texts))
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        for text, encoding in zip(texts, encodings, strict=True):
            self.tokens[split].add([*encoding.ids, self._end])
            self._profiles[split].add(text, len(encoding.ids))


class DocumentShards:
    """The documents of one split: ``<split>.jsonl``, and when that is full ``<split>-00001.jsonl`` and so on."""

    def __init__(self, folder: Path, split: str, shard_bytes: int) -> None:
        self._folder = folder
        self._split = split
        self._shard_bytes = shard_bytes
        self._shard = 0
        self._written = 0
        self._file: IO[bytes] = self._open()

    def _open(self) -> IO[bytes]:
        name = f"{self._split}-{self._shard:05d}.jsonl" if self._shard else f"{self._split}.jsonl"
        return (self._folder / name).open("wb")

    def write(self, line: str) -> None:
        """Append one line."""
        if self._written >= self._shard_bytes:
            self._file.close()
            self._shard, self._written = self._shard + 1, 0
            self._file = self._open()
        self._written += self._file.write(line.encode())

    def close(self) -> None:
        """Close the last shard."""
        self._file.close()
