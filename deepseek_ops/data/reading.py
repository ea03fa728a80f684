"""Single files of a stored version, without a folder: each is verified before, or while, it is handed out."""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

from deepseek_ops.core.errors import IntegrityError, PermanentError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.data.layout import blob_key
from deepseek_ops.data.packs import PackRead, Stored, read_packed
from deepseek_ops.data.pages import LOOSE
from deepseek_ops.data.trees import Tree

CHUNK_BYTES = 8 << 20


@dataclass(eq=False)
class NoSuchFileError(PermanentError):
    """A version holds no file of this path."""

    version: str
    path: str

    def __str__(self) -> str:
        return f"version {self.version} has no file {self.path!r}; `data files` lists its paths."


def find_file(tree: Tree, path: str) -> Stored | None:
    """Return the file of this path, or None; one page is read."""
    for ref in tree.holding([path]):
        page = tree.read_one(ref)
        at = bisect_left(page.entries, path, key=lambda entry: entry.path)
        if at < len(page.entries) and page.entries[at].path == path:
            return Stored(page.entries[at], page.locations[at])
    return None


def read_stored(store: ObjectStore, file: Stored) -> bytes:
    """Return all bytes of a file, verified. Raises IntegrityError, ObjectNotFoundError."""
    return b"".join(stream_stored(store, file, chunk_bytes=max(file.entry.size, 1)))


def stream_stored(store: ObjectStore, file: Stored, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
    """Yield the bytes of a file in order, in chunks of at most ``chunk_bytes``; memory holds one of them.

    A file that lies in a pack is verified before its first chunk. A large one is verified as it goes, so what was
    yielded counts only when the iterator ends without IntegrityError. Raises ObjectNotFoundError.
    """
    if file.location != LOOSE:
        begin = file.location.offset
        whole = PackRead(file.location.pack, begin, begin + file.entry.size, [file])
        for _, content in read_packed(store, whole):
            for start in range(0, len(content), chunk_bytes):
                yield bytes(content[start : start + chunk_bytes])
        return
    key, seen = blob_key(file.entry.digest.hex()), hashlib.sha256()
    for start in range(0, file.entry.size, chunk_bytes):
        data = store.get(key, start=start, length=min(chunk_bytes, file.entry.size - start))
        seen.update(data)
        yield data
    if seen.digest() != file.entry.digest:
        where = f"{file.entry.path} in {store.uri}/{key}"
        raise IntegrityError(where, file.entry.digest.hex(), seen.hexdigest())
