"""Large sets of SHA-256 digests in little memory: about 40 bytes each, where a Python set takes 130."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator

from deepseek_ops.data.pages import DIGEST_BYTES

_FRESH = 512
"""Digests of a shard that wait to be sorted in; 256 shards, so at most 17 MB wait."""


class DigestSet:
    """A set of 32-byte digests that only grows. Safe for use by many threads."""

    def __init__(self, digests: Iterable[bytes] = ()) -> None:
        self._sorted: list[bytes] = [b""] * 256
        self._fresh: list[set[bytes]] = [set() for _ in range(256)]
        self._lock = threading.Lock()
        for digest in digests:
            self.add(digest)

    def add(self, digest: bytes) -> bool:
        """Put the digest in and return whether it was new."""
        shard = digest[0]
        with self._lock:
            if self._holds(shard, digest):
                return False
            fresh = self._fresh[shard]
            fresh.add(digest)
            if len(fresh) >= max(_FRESH, len(self._sorted[shard]) // (4 * DIGEST_BYTES)):
                self._sort(shard)
            return True

    def __contains__(self, digest: bytes) -> bool:
        with self._lock:
            return self._holds(digest[0], digest)

    def __len__(self) -> int:
        with self._lock:
            return sum(len(part) for part in self._sorted) // DIGEST_BYTES + sum(len(part) for part in self._fresh)

    def __iter__(self) -> Iterator[bytes]:
        """Yield the digests, sorted; those added meanwhile may or may not be among them."""
        for shard in range(256):
            with self._lock:
                self._sort(shard)
                ordered = self._sorted[shard]
            yield from (ordered[at : at + DIGEST_BYTES] for at in range(0, len(ordered), DIGEST_BYTES))

    def _sort(self, shard: int) -> None:
        if self._fresh[shard]:
            ordered = self._sorted[shard]
            there = [ordered[at : at + DIGEST_BYTES] for at in range(0, len(ordered), DIGEST_BYTES)]
            self._sorted[shard] = b"".join(sorted([*there, *self._fresh[shard]]))
            self._fresh[shard] = set()

    def _holds(self, shard: int, digest: bytes) -> bool:
        return digest in self._fresh[shard] or find_row(self._sorted[shard], DIGEST_BYTES, digest) is not None


def find_row(rows: bytes, width: int, digest: bytes) -> int | None:
    """Return where the row that begins with ``digest`` starts in sorted rows of ``width`` bytes, or None."""
    low, high = 0, len(rows) // width
    while low < high:
        middle = (low + high) // 2
        at = middle * width
        found = rows[at : at + DIGEST_BYTES]
        if found == digest:
            return at
        if found < digest:
            low = middle + 1
        else:
            high = middle
    return None
