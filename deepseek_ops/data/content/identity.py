"""What makes two records the same one, and how long a record is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b

from pydantic import JsonValue

from deepseek_ops.core.records import canonical_json

TokenCount = Callable[[Sequence[str]], Sequence[int]]
"""Texts -> tokens of each."""


def count_words(texts: Sequence[str]) -> list[int]:
    """Return the words of each text, separated by whitespace: the measure where no tokenizer is given."""
    return [len(text.split()) for text in texts]


def identity_of(value: JsonValue, key: str | None) -> tuple[bytes, bytes]:
    """Return (identity, content) of a record, 16 bytes each; a record without the key is known by its content."""
    content = blake2b(canonical_json(value) if not isinstance(value, str) else _utf8(value), digest_size=16).digest()
    name = value.get(key) if key and isinstance(value, dict) else None
    if name is None:
        return content, content
    return blake2b(canonical_json(name), digest_size=16, person=b"key").digest(), content


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")
