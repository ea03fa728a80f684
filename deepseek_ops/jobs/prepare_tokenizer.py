"""The tokenizer of a dataset: loading it, and counting with it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_ops.core.errors import MissingDependencyError, PermanentError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(eq=False)
class MissingTokenizerError(PermanentError):
    """The callable left no tokenizer that can be loaded."""

    problem: str

    def __str__(self) -> str:
        return f"tokenizer/: {self.problem}; write tokenizer.json and tokenizer_config.json with an eos_token there."


def load_tokenizer(folder: Path) -> tuple[Tokenizer, int]:
    """Return the tokenizer and the id of its end token. Raises MissingTokenizerError."""
    settings = folder / "tokenizer_config.json"
    if not (folder / "tokenizer.json").is_file() or not settings.is_file():
        raise MissingTokenizerError("tokenizer.json or tokenizer_config.json is missing")
    tokenizer = _loaded(folder / "tokenizer.json")
    try:
        token = json.loads(settings.read_text(encoding="utf-8")).get("eos_token")
    except (ValueError, AttributeError) as error:
        raise MissingTokenizerError(f"tokenizer_config.json: {error}") from error
    end = tokenizer.token_to_id(str(token.get("content") if isinstance(token, dict) else token))
    if end is None:
        raise MissingTokenizerError(f"eos_token {token!r} is not in the vocabulary")
    return tokenizer, end


def token_counter(file: Path) -> Callable[[Sequence[str]], list[int]]:
    """Return a function from texts to the tokens of each. Raises MissingTokenizerError, MissingDependencyError."""
    tokenizer = _loaded(file)

    def count(texts: Sequence[str]) -> list[int]:
        return [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    return count


def _loaded(file: Path) -> Tokenizer:
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise MissingDependencyError("tokenizers", "train", "counting tokens") from None
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # the tokenizers package raises bare Exception
        raise MissingTokenizerError(str(error)) from error
