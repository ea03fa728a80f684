"""Bytes and keys that the tests of the object stores compare."""

from __future__ import annotations

from collections.abc import Iterator

from deepseek_ops.core.ports import ObjectInfo

LARGE = (33 << 20) + 12_345
"""Above what goes up in one request and comes down in one."""


def pattern(num_bytes: int) -> bytes:
    """Return bytes in which no two parts are alike, so that parts in a wrong order show."""
    block = b"".join(number.to_bytes(4, "big") for number in range(1 << 18))
    return (block * (num_bytes // len(block) + 1))[:num_bytes]


def keys(found: Iterator[ObjectInfo]) -> list[str]:
    return [info.key for info in found]
