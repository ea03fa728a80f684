"""From a folder to a stored tree, reading and sending only what the parent does not have.

Files that the stat cache knows are not read. The others are hashed by threads, and small ones that the parent's pages
do not hold go into packs as they were hashed: what is stored under a digest is what was read, also when somebody
writes to the folder meanwhile. A page goes up after the packs it names, the root after the pages; a reader can see a
tree only when all of it is there.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.ports import ObjectStore, Progress
from deepseek_ops.data.blobs import StoreBlobs, hash_file
from deepseek_ops.data.folders import ChangedWhileReadError, LocalFile, local_error, scan_folder
from deepseek_ops.data.layout import tree_key
from deepseek_ops.data.packs import PackWriter
from deepseek_ops.data.pages import (
    LOOSE,
    LOOSE_BYTES,
    Entry,
    Location,
    PageRef,
    cut,
    encode_page,
    encode_tree,
    page_ref,
    tree_digest,
)
from deepseek_ops.data.parallel import in_order, in_parallel
from deepseek_ops.data.progress import Meter
from deepseek_ops.data.statcache import StatCache
from deepseek_ops.data.trees import Tree

BATCH_BYTES = 2 << 20
BATCH_FILES = 128

SplitOf = Callable[[str], str]
"""Path -> name of its split, or empty."""


@dataclass(eq=False)
class EmptyDatasetError(PermanentError):
    """A folder without files was to become a version."""

    folder: str

    def __str__(self) -> str:
        return f"{self.folder} holds no files; check the path, or what should have written there."


def no_split(_path: str) -> str:
    """Return the empty split: the files of this dataset are not split by path."""
    return ""


def store_folder(
    store: ObjectStore,
    folder: Path,
    *,
    parent: Tree,
    split_of: SplitOf = no_split,
    workers: int = 8,
    progress: Progress | None = None,
) -> Tree:
    """Store the folder and return its tree. Equal folders give equal trees, whatever their parents and history.

    Raises EmptyDatasetError, UnstorableFileError, ChangedWhileReadError, LocalDiskError.
    """
    scanned_ns = time.time_ns()
    files = scan_folder(folder)
    if not files:
        raise EmptyDatasetError(str(folder))
    cache = StatCache(folder)
    with PackWriter(store) as packs:
        sender = _Sender(store, folder, parent, packs, workers)
        digests = sender.hashed(files, [cache.digest(file) for file in files])
        rows = zip(files, digests, strict=True)
        pages = [(page_ref(page), page) for page in cut(Entry(f.name, f.size, d, split_of(f.name)) for f, d in rows)]
        shared = {page.digest for page in parent.pages}
        new = [(ref, page) for ref, page in pages if ref.digest not in shared]
        sender.locate([page for _, page in new])
        locations = {**sender.known, **packs.finish()}
    tree = _put_tree(store, [ref for ref, _ in pages], new, locations, workers)
    cache.save(dict(zip(files, digests, strict=True)), scanned_ns=scanned_ns)
    Meter(progress, "stored").finish()
    return tree


def _put_tree(
    store: ObjectStore,
    pages: Sequence[PageRef],
    new: Iterable[tuple[PageRef, Sequence[Entry]]],
    locations: dict[bytes, Location],
    workers: int,
) -> Tree:
    def put(item: tuple[PageRef, Sequence[Entry]]) -> None:
        ref, entries = item
        store.put_blob(tree_key(ref.digest), encode_page(entries, locations))

    in_parallel(put, new, workers)
    digest = tree_digest(pages)
    store.put_blob(tree_key(digest), encode_tree(pages))
    return Tree(store, digest, pages)


class _Sender:
    """Hashes the files of one folder and stores those whose place is not known."""

    def __init__(self, store: ObjectStore, folder: Path, parent: Tree, packs: PackWriter, workers: int) -> None:
        self._folder = str(folder)
        self._blobs = StoreBlobs(store)
        self._parent = parent
        self._packs = packs
        self._workers = workers
        self._read: set[PageRef] = set()
        self.known: dict[bytes, Location] = {}
        """Where files lie that were stored before, as far as it was needed."""

    def hashed(self, files: Sequence[LocalFile], cached: Sequence[bytes | None]) -> list[bytes]:
        """Return the digest of each file, with those the cache did not have stored."""
        digests = list(cached)
        unknown = [index for index, digest in enumerate(cached) if digest is None]
        self._learn(self._parent.holding(files[index].name for index in unknown))
        for index, digest in zip(unknown, self._stored([files[index] for index in unknown]), strict=True):
            digests[index] = digest
        return [digest for digest in digests if digest is not None]

    def locate(self, pages: Iterable[Sequence[Entry]]) -> None:
        """See to it that every file of these pages has a place: one the parent knows, or a new one."""
        pages = list(pages)
        missing = [page for page in pages if any(self._placeless(entry) for entry in page)]
        self._learn(ref for page in missing for ref in self._parent.overlapping(page[0].path, page[-1].path))
        lost = [entry for page in missing for entry in page if self._placeless(entry)]
        again = [LocalFile(entry.path, entry.size, 0, 0, 0) for entry in lost]
        for entry, digest in zip(lost, self._stored(again), strict=True):
            if digest != entry.digest:  # the cache was wrong about it
                raise ChangedWhileReadError(f"{self._folder}/{entry.path}")

    def _placeless(self, entry: Entry) -> bool:
        return entry.digest not in self.known and entry.digest not in self._packs

    def _learn(self, pages: Iterable[PageRef]) -> None:
        fresh = set(pages) - self._read
        self._read |= fresh
        for page in self._parent.read(sorted(fresh)):
            for entry, location in zip(page.entries, page.locations, strict=True):
                self.known.setdefault(entry.digest, location)

    def _stored(self, files: Sequence[LocalFile]) -> Iterator[bytes]:
        """Hash the files and store those not known; yield digests in order."""
        for results in in_order(self._hash_batch, _batches(files), self._workers):
            for digest, data in results:
                if data is None:
                    self.known.setdefault(digest, LOOSE)
                elif self._packs_want(digest):
                    self._packs.add(digest, data)
                yield digest

    def _packs_want(self, digest: bytes) -> bool:
        return digest not in self.known and digest not in self._packs

    def _hash_batch(self, files: Sequence[LocalFile]) -> list[tuple[bytes, bytes | None]]:
        return [self._hash_small(file) if file.size < LOOSE_BYTES else self._send_large(file) for file in files]

    def _hash_small(self, file: LocalFile) -> tuple[bytes, bytes | None]:
        path = f"{self._folder}/{file.name}"
        try:
            handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                data = os.read(handle, file.size + 1)
            finally:
                os.close(handle)
        except OSError as error:
            raise local_error(path, error) from error
        if len(data) != file.size:
            raise ChangedWhileReadError(path)
        return hashlib.sha256(data).digest(), data

    def _send_large(self, file: LocalFile) -> tuple[bytes, None]:
        path = Path(self._folder, file.name)
        digest, size = hash_file(path)
        if size != file.size:
            raise ChangedWhileReadError(str(path))
        raw = bytes.fromhex(digest)
        if raw not in self.known:
            self._blobs.ensure(digest, size, path)
        return raw, None


def _batches(files: Iterable[LocalFile]) -> Iterator[list[LocalFile]]:
    batch: list[LocalFile] = []
    size = 0
    for file in files:
        batch.append(file)
        size += file.size
        if size >= BATCH_BYTES or len(batch) >= BATCH_FILES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
