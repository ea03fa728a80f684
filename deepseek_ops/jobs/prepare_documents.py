"""From documents and a tokenizer to the files of a dataset version.

::

    documents/<split>.jsonl      {"id", "text"}, for evaluation and for people
    tokens/<split>-00000.bin     see ``deepseek_ops.jobs.tokens``
    tokenizer/                   as the model repository made it
    report.json                  counts

A document's split is decided by its content, so adding data moves nothing from train to test. Exact duplicates are
dropped; a document that differs from one of *another* split only in case and spacing would leak it, and is dropped
from wherever it comes second.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import IO, TYPE_CHECKING, Self

from pydantic import JsonValue

from deepseek_ops.core.errors import PermanentError
from deepseek_ops.data.split import assign_split
from deepseek_ops.jobs.tokens import TokenWriter
from deepseek_ops.jobs.training_data import DOCUMENTS, TOKENIZER, TOKENS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SOURCE = "documents.jsonl"
_BATCH = 256


@dataclass(eq=False)
class InvalidDocumentError(PermanentError):
    """A line of documents.jsonl is not a document."""

    line: int
    problem: str

    def __str__(self) -> str:
        return f'{SOURCE}, line {self.line}: {self.problem}; write one {{"id": "...", "text": "..."}} per line.'


@dataclass(eq=False)
class MissingTokenizerError(PermanentError):
    """The callable left no tokenizer that can be loaded."""

    problem: str

    def __str__(self) -> str:
        return f"tokenizer/: {self.problem}; write tokenizer.json and tokenizer_config.json with an eos_token there."


@dataclass(eq=False)
class EmptyDatasetError(PermanentError):
    """Nothing to train on came out."""

    split: str

    def __str__(self) -> str:
        return f"the {self.split} split got no document; give prepare more raw data, or a larger share to the split."


@dataclass(frozen=True, slots=True)
class Document:
    """One line of documents.jsonl."""

    id: str
    text: str


@dataclass
class Counts:
    """What was met while writing."""

    duplicates: int = 0
    leaks: int = 0
    characters: int = 0
    by_split: dict[str, int] = field(default_factory=dict)


def write_dataset(source: Path, target: Path, shares: Mapping[str, float]) -> dict[str, JsonValue]:
    """Write the dataset's folder from what the callable left in ``source`` and return its report.

    Raises:
        InvalidDocumentError: A line is not a document; says which and why.
        MissingTokenizerError: There is no usable tokenizer.
        EmptyDatasetError: A split with a share got no document.
    """
    tokenizer, end = load_tokenizer(source / TOKENIZER)
    target.mkdir(parents=True)
    shutil.copytree(source / TOKENIZER, target / TOKENIZER)
    counts = Counts()
    with SplitFiles(target, [name for name, share in shares.items() if share > 0], tokenizer, end) as files:
        for name, document in _placed(source / SOURCE, shares, counts):
            files.add(name, document)
            counts.characters += len(document.text)
            counts.by_split[name] = counts.by_split.get(name, 0) + 1
    for name, share in shares.items():
        if share > 0 and not counts.by_split.get(name):
            raise EmptyDatasetError(name)
    report = _report(counts, files, tokenizer.get_vocab_size())
    (target / "report.json").write_text(json.dumps(report, indent=2, sort_keys=True) + "\n")
    return report


def load_tokenizer(folder: Path) -> tuple[Tokenizer, int]:
    """Return the tokenizer and the id of its end token. Raises MissingTokenizerError."""
    from tokenizers import Tokenizer

    settings = folder / "tokenizer_config.json"
    if not (folder / "tokenizer.json").is_file() or not settings.is_file():
        raise MissingTokenizerError("tokenizer.json or tokenizer_config.json is missing")
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        token = json.loads(settings.read_text(encoding="utf-8")).get("eos_token")
    except Exception as error:  # the tokenizers package raises bare Exception
        raise MissingTokenizerError(str(error)) from error
    end = tokenizer.token_to_id(str(token.get("content") if isinstance(token, dict) else token))
    if end is None:
        raise MissingTokenizerError(f"eos_token {token!r} is not in the vocabulary")
    return tokenizer, end


class SplitFiles:
    """The open files of all splits; documents are tokenised in batches, on all cores."""

    def __init__(self, target: Path, splits: list[str], tokenizer: Tokenizer, end: int) -> None:
        self._tokenizer = tokenizer
        self._end = end
        size = tokenizer.get_vocab_size()
        (target / DOCUMENTS).mkdir()
        self.tokens = {name: TokenWriter(target / TOKENS, name, vocab_size=size) for name in splits}
        self._texts: dict[str, IO[str]] = {
            name: (target / DOCUMENTS / f"{name}.jsonl").open("w", encoding="utf-8", newline="\n") for name in splits
        }
        self._waiting: dict[str, list[str]] = {name: [] for name in splits}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        for name in self._waiting:
            self._tokenise(name)
            self.tokens[name].close()
            self._texts[name].close()

    def add(self, split: str, document: Document) -> None:
        """Append a document to its split."""
        line = json.dumps({"id": document.id, "text": document.text}, ensure_ascii=False)
        self._texts[split].write(line + "\n")
        self._waiting[split].append(document.text)
        if len(self._waiting[split]) >= _BATCH:
            self._tokenise(split)

    def _tokenise(self, split: str) -> None:
        texts, self._waiting[split] = self._waiting[split], []
        for encoding in self._tokenizer.encode_batch(texts, add_special_tokens=False):
            self.tokens[split].add([*encoding.ids, self._end])


def _placed(path: Path, shares: Mapping[str, float], counts: Counts) -> Iterator[tuple[str, Document]]:
    """Yield (split, document) of each document that is kept."""
    seen: set[bytes] = set()
    homes: dict[bytes, str] = {}
    for document in documents(path):
        key = sha256(document.text.encode())
        if key.digest() in seen:
            counts.duplicates += 1
            continue
        seen.add(key.digest())
        split = assign_split(key.hexdigest(), shares)
        loose = sha256(" ".join(document.text.casefold().split()).encode()).digest()
        if homes.setdefault(loose, split) != split:
            counts.leaks += 1
            continue
        yield split, document


def documents(path: Path) -> Iterator[Document]:
    """Yield the documents of a JSON-lines file, one line in memory at a time. Raises InvalidDocumentError."""
    if not path.is_file():
        raise InvalidDocumentError(0, "the callable did not write the file")
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                value = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError) as error:
                raise InvalidDocumentError(number, f"not JSON in UTF-8: {error}") from error
            if not isinstance(value, dict) or not all(isinstance(value.get(key), str) for key in ("id", "text")):
                raise InvalidDocumentError(number, "it lacks an id or a text that is a string")
            if value["text"].strip():
                yield Document(value["id"], value["text"])


def _report(counts: Counts, files: SplitFiles, vocab_size: int) -> dict[str, JsonValue]:
    tokens = {name: writer.num_tokens for name, writer in files.tokens.items()}
    total = sum(tokens.values())
    return {
        "documents": sum(counts.by_split.values()),
        "documents_by_split": dict(sorted(counts.by_split.items())),
        "tokens": total,
        "tokens_by_split": dict(sorted(tokens.items())),
        "characters": counts.characters,
        "characters_per_token": round(counts.characters / max(total, 1), 4),
        "dropped_duplicates": counts.duplicates,
        "dropped_leaks": counts.leaks,
        "vocab_size": vocab_size,
    }
