"""From files that arrive one after the other to a version, without a folder that holds them all.

Small files go straight into packs. A file of 1 MiB or more is written to a scratch file, hashed on the way, sent and
removed, so the disk holds one for each thread. As with a commit from a folder, nothing refers to anything before the
branch's log gets its entry: an import that is refused or killed half-way leaves no version, and the next try finds
what is up already.
"""

from __future__ import annotations

import hashlib
import secrets
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from deepseek_ops.core.ports import ObjectStore, Progress
from deepseek_ops.core.records import DatasetVersion
from deepseek_ops.data.blobs import StoreBlobs
from deepseek_ops.data.committing import append_commit, commit_body
from deepseek_ops.data.folders import local_error
from deepseek_ops.data.gc_guard import writing
from deepseek_ops.data.layout import require_format, tree_key
from deepseek_ops.data.naming import checked_branch, checked_name
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
from deepseek_ops.data.refs import RefLog
from deepseek_ops.data.repository import DatasetRepository
from deepseek_ops.data.snapshot import EmptyDatasetError
from deepseek_ops.data.trees import Tree

TELL_EVERY = 1000


@dataclass(frozen=True, slots=True)
class Arriving:
    """One file that is to become part of a version."""

    path: str
    read: Callable[[], Iterable[bytes]]
    """Gives its bytes in chunks; raises when they are not what the source promised."""
    split: str = ""
    known: tuple[bytes, int, Location] | None = None
    """SHA-256, size and place of content that the store has already: it is not read."""


@dataclass(frozen=True, slots=True)
class Origin:
    """How an import is recorded."""

    name: str
    message: str
    author: str
    branch: str = "main"
    lineage: Mapping[str, JsonValue] | None = None


def commit_arriving(
    repository: DatasetRepository,
    arriving: Iterable[Arriving],
    origin: Origin,
    *,
    source: str,
    sequential: bool = False,
    progress: Progress | None = None,
) -> DatasetVersion:
    """Make what arrives the newest version of a branch and return it; the same again makes no new version.

    Args:
        repository: Where it goes.
        arriving: Paths must be plain and unique (see ``PathGate``); read lazily.
        origin: Names, message, lineage.
        source: What errors call the origin.
        sequential: Each file must be read before the next one is asked for (archives).
        progress: Told now and then.

    Raises:
        EmptyDatasetError: Nothing arrived.
    """
    checked_name("dataset", origin.name)
    checked_branch(origin.branch)
    require_format(repository.store)
    # Guarded: no collection takes what this import relies on before the branch names it.
    with writing(repository.store, holder=f"import into {origin.name}@{origin.branch} by {origin.author}") as store:
        log = RefLog(store, origin.name, origin.branch)
        head = log.head() or RefLog(store, origin.name, "main").head()
        base = DatasetRepository(store).tree(head.version) if head else Tree.empty(store)
        tree = store_arriving(store, arriving, parent=base, source=source, sequential=sequential, progress=progress)
        lineage = dict(origin.lineage or {})
        body = commit_body(tree, name=origin.name, message=origin.message, author=origin.author, lineage=lineage)
        return append_commit(store, log, log.last(), body, None)


def store_arriving(
    store: ObjectStore,
    arriving: Iterable[Arriving],
    *,
    parent: Tree,
    source: str,
    sequential: bool = False,
    progress: Progress | None = None,
    workers: int = 4,
) -> Tree:
    """Store the files and return their tree; no branch moves. Raises EmptyDatasetError."""
    with tempfile.TemporaryDirectory(prefix="deepseek-ops-import-") as scratch, PackWriter(store) as packs:
        receiver = _Receiver(store, Path(scratch), parent, packs)
        received = map(receiver.receive, arriving) if sequential else in_order(receiver.receive, arriving, workers)
        entries: list[Entry] = []
        for entry, data in received:
            receiver.place(entry, data)
            entries.append(entry)
            if progress is not None and len(entries) % TELL_EVERY == 0:
                progress(f"imported {len(entries)} files", None)
        if not entries:
            raise EmptyDatasetError(source)
        entries.sort()
        locations = {**receiver.places, **packs.finish()}
    if progress is not None:
        progress(f"imported {len(entries)} files", 1.0)
    return put_tree(store, entries, locations, known={page.digest for page in parent.pages}, workers=workers)


def put_tree(
    store: ObjectStore, entries: Iterable[Entry], locations: Mapping[bytes, Location], *, known: set[str], workers: int
) -> Tree:
    """Store the pages that are not ``known`` and the root page of sorted entries, and return the tree."""
    pages: list[PageRef] = []

    def put(page: list[Entry]) -> PageRef:
        ref = page_ref(page)
        if ref.digest not in known:
            own = {entry.digest: locations[entry.digest] for entry in page}
            store.put_blob(tree_key(ref.digest), encode_page(page, own))
        return ref

    pages = in_parallel(put, cut(entries), workers)
    digest = tree_digest(pages)
    store.put_blob(tree_key(digest), encode_tree(pages))
    return Tree(store, digest, pages)


class _Receiver:
    """Reads what arrives and knows where content lies. ``receive`` runs in threads, ``place`` in one."""

    def __init__(self, store: ObjectStore, scratch: Path, parent: Tree, packs: PackWriter) -> None:
        self._blobs = StoreBlobs(store)
        self._scratch = scratch
        self._parent = parent
        self._packs = packs
        self._learnt: set[PageRef] = set()
        self.places: dict[bytes, Location] = {}

    def receive(self, item: Arriving) -> tuple[Entry, bytes | Location]:
        """Return the entry, with its bytes when it is small, or else with its place."""
        if item.known is not None:
            digest, size, location = item.known
            return Entry(item.path, size, digest, item.split), location
        chunks = iter(item.read())
        begin = bytearray()
        for chunk in chunks:
            begin += chunk
            if len(begin) >= LOOSE_BYTES:
                return self._spool(item, begin, chunks), LOOSE
        data = bytes(begin)
        return Entry(item.path, len(data), hashlib.sha256(data).digest(), item.split), data

    def _spool(self, item: Arriving, begin: bytearray, chunks: Iterator[bytes]) -> Entry:
        seen, size = hashlib.sha256(begin), len(begin)
        path = self._scratch / secrets.token_hex(8)
        try:
            with path.open("xb") as file:
                file.write(begin)
                begin.clear()
                for chunk in chunks:
                    file.write(chunk)
                    seen.update(chunk)
                    size += len(chunk)
            self._blobs.ensure(seen.hexdigest(), size, path)
        except OSError as error:
            raise local_error(path, error) from error
        finally:
            path.unlink(missing_ok=True)
        return Entry(item.path, size, seen.digest(), item.split)

    def place(self, entry: Entry, data: bytes | Location) -> None:
        """See to it that the content has a place: one that is known, or a new one in a pack."""
        if isinstance(data, Location):
            self.places.setdefault(entry.digest, data)
        elif entry.digest not in self.places and entry.digest not in self._packs:
            self._learn(entry.path)
            if entry.digest not in self.places:
                self._packs.add(entry.digest, data)

    def _learn(self, path: str) -> None:
        for ref in self._parent.holding([path]):
            if ref not in self._learnt:
                self._learnt.add(ref)
                page = self._parent.read_one(ref)
                for entry, location in zip(page.entries, page.locations, strict=True):
                    self.places.setdefault(entry.digest, location)
