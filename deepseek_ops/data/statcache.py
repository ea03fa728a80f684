"""What a folder looked like when it was hashed last: files whose size, time and inode are the same are not read.

As in Git, a file that was touched within the clock's grain of the scan is left out, because a later change could leave
its times as they are. The cache is a hint of this machine: a damaged or missing one costs time, never correctness,
since content is hashed again whenever it is sent.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import msgpack  # type: ignore[import-untyped]

from deepseek_ops.data.folders import OWN_FOLDER, LocalFile

GRAIN_NS = 50_000_000
"""Coarsest step of file times we trust: kernels tick at 1-10 ms, some file systems keep coarser times."""
_HEAD = b"deepseek-ops stat cache/2\n"


class StatCache:
    """Digests by (name, size, mtime, ctime, inode) of one folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / OWN_FOLDER / "stat-cache"
        self._known = _load(self._path)

    def digest(self, file: LocalFile) -> bytes | None:
        """Return the SHA-256 of a file that has not changed, or None."""
        return self._known.get(file)

    def save(self, digests: Mapping[LocalFile, bytes], *, scanned_ns: int) -> None:
        """Remember the digests of a scan that began at ``scanned_ns``; a read-only folder is left as it is."""
        newest = scanned_ns - GRAIN_NS
        kept = {file: digest for file, digest in digests.items() if file.mtime_ns < newest}
        if kept == self._known:
            return
        columns = [list(column) for column in zip(*kept, strict=True)] or [[] for _ in LocalFile._fields]
        body = msgpack.packb([*columns, b"".join(kept.values())])
        temporary = self._path.with_name(f"stat-cache.{os.getpid()}.{secrets.token_hex(4)}")
        with suppress(OSError):
            self._path.parent.mkdir(exist_ok=True)
            try:
                temporary.write_bytes(_HEAD + hashlib.sha256(body).digest() + body)
                temporary.replace(self._path)
            finally:
                temporary.unlink(missing_ok=True)
        self._known = kept


def _load(path: Path) -> dict[LocalFile, bytes]:
    try:
        data = path.read_bytes()
    except OSError:
        return {}
    head, digest, body = data[: len(_HEAD)], data[len(_HEAD) : len(_HEAD) + 32], data[len(_HEAD) + 32 :]
    if head != _HEAD or hashlib.sha256(body).digest() != digest:
        return {}
    *columns, digests = msgpack.unpackb(body)
    files = map(LocalFile, *columns)
    return {file: digests[at * 32 : at * 32 + 32] for at, file in enumerate(files)}
