"""A prefix of a data lake as a dataset: each ingest is a version, and only what is new or changed is fetched.

Beside each version lies the listing it was made from (key, size, time). The next ingest walks the new listing along
the old one; an object whose size and time are the same is taken over from the parent without being read. The listing
is a help, not part of the version: the same bytes give the same version whenever they were uploaded.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from pathlib import Path

import zstandard

from deepseek_ops.core.errors import ObjectExistsError, PermanentError
from deepseek_ops.core.ports import ObjectInfo, ObjectStore
from deepseek_ops.core.records import DatasetVersion, digest_of
from deepseek_ops.data.blobs import StoreBlobs, hash_file
from deepseek_ops.data.committing import append_commit, commit_body
from deepseek_ops.data.folders import check_plain
from deepseek_ops.data.gc_guard import writing
from deepseek_ops.data.packs import PackWriter, Stored
from deepseek_ops.data.pages import LOOSE, LOOSE_BYTES, Entry
from deepseek_ops.data.parallel import in_parallel
from deepseek_ops.data.repository import DatasetRepository
from deepseek_ops.data.splice import splice
from deepseek_ops.data.trees import Tree

MARKERS = ("_READY", "_SUCCESS", "manifest.json")
"""Objects that announce an upload and are no data."""
_OURS = (".deepseek-ops/", ".git/")
BRANCH = "main"
AUTHOR = "deepseek-ops <ingest@deepseek-ops.invalid>"
LISTINGS = "caches/lake"
_BATCH_FILES = 512
_BATCH_BYTES = 256 << 20
_SPLICE_FILES = 1 << 17
"""So many changed files are held before they go into a tree."""
Say = Callable[[str], None]


@dataclass(eq=False)
class MissingDatasetError(PermanentError):
    """Nothing to train on."""

    uri: str

    def __str__(self) -> str:
        return f"no raw data below {self.uri}: upload the corpus there, or correct data.raw in deepseek.yaml."


@dataclass
class Ingested:
    """What an ingest did."""

    version: DatasetVersion
    fetched: int = 0
    fetched_bytes: int = 0
    unchanged: int = 0
    removed: int = 0


@dataclass
class _State:
    """The tree so far, and what is still to go into it."""

    tree: Tree
    edits: dict[str, Stored | None] = field(default_factory=dict)


def data_objects(lake: ObjectStore) -> Iterator[ObjectInfo]:
    """Yield the objects of a prefix that are data, by key; what we keep in folders that people commit is none."""
    for info in lake.list(""):
        noted = info.key.endswith("/") or info.key.rpartition("/")[2] in MARKERS or info.key.startswith(_OURS)
        if info.size and not noted:
            yield info


def ingest(
    repository: DatasetRepository, lake: ObjectStore, name: str, *, progress: Say = lambda _line: None, workers: int = 8
) -> Ingested:
    """Make what lies below the lake's prefix the newest version of a dataset, and return it with what was done.

    An ingest of unchanged objects reads none and makes no new version. Memory and temporary disk are bounded.
    Raises MissingDatasetError when there is no object, UnsafeTargetError for keys that are no plain paths.
    """
    repository = DatasetRepository.open(repository.store)
    with (
        writing(repository.store, holder=f"ingest of {name}") as store,
        tempfile.TemporaryDirectory(prefix="deepseek-ops-ingest-") as folder,
    ):
        log = repository.log_of(name, BRANCH)
        last = log.last()
        head = None if last is None or last.deleted else last.version
        before = _listing_of(repository.store, lake.uri, head, Path(folder)) if head else None
        tree = str(repository.describe(head)["tree"]) if head and before else ""
        state = _State(Tree.load(store, tree) if tree else Tree.empty(store))
        run = _Ingest(store, lake, state, Path(folder), progress, workers)
        run.walk(before)
        if not state.tree.num_files:
            raise MissingDatasetError(lake.uri)
        body = commit_body(
            state.tree, name=name, message=f"Ingest {lake.uri}", author=AUTHOR, lineage={"uri": lake.uri}
        )
        version = append_commit(store, log, last, body, None)
        run.keep_listing(repository.store, version)
    return Ingested(version, run.fetched, run.fetched_bytes, run.unchanged, run.removed)


def ingested(repository: DatasetRepository, lake: ObjectStore, name: str) -> DatasetVersion | None:
    """Return the version that ``ingest`` would find there already, or None when it would make one. Writes nothing."""
    last = repository.log_of(name, BRANCH).last()
    if last is None or last.deleted:
        return None
    with tempfile.TemporaryDirectory(prefix="deepseek-ops-lake-") as folder:
        before = _listing_of(repository.store, lake.uri, last.version, Path(folder))
        if before is None:
            return None
        pairs = zip_longest(_lines(before), data_objects(lake))
        same = all(old and new and old.key == new.key and _unchanged(old, new) for old, new in pairs)
    return repository.load(last.version) if same else None


class _Ingest:
    def __init__(
        self, store: ObjectStore, lake: ObjectStore, state: _State, folder: Path, progress: Say, workers: int
    ) -> None:
        self._store = store
        self._lake = lake
        self._state = state
        self._folder = folder
        self._progress = progress
        self._workers = workers
        self._blobs = StoreBlobs(store)
        self._listing = folder / "listing.zst"
        self.fetched = self.fetched_bytes = self.unchanged = self.removed = 0

    def walk(self, before: Path | None) -> None:
        """Bring the tree to what the lake lists now, taking over what the old listing has; keep the new listing."""
        changed = self._changed(_lines(before) if before else iter(()))
        while batch := list(islice(changed, _BATCH_FILES)):
            check_plain(self._folder, [info.key for info in batch])
            for part in _by_bytes(batch):
                self._fetch(part)
            if len(self._state.edits) >= _SPLICE_FILES:
                self._splice()
        self._splice()

    def _changed(self, before: Iterator[ObjectInfo]) -> Iterator[ObjectInfo]:
        """Yield the objects that are to be fetched; those that are gone become edits."""
        with self._listing.open("wb") as file, zstandard.ZstdCompressor(level=3).stream_writer(file) as listing:
            known = next(before, None)
            for info in data_objects(self._lake):
                listing.write(json.dumps([info.key, info.size, info.modified]).encode() + b"\n")
                while known is not None and known.key < info.key:
                    self._remove(known.key)
                    known = next(before, None)
                same = known is not None and known.key == info.key and _unchanged(known, info)
                if known is not None and known.key == info.key:
                    known = next(before, None)
                if same:
                    self.unchanged += 1
                else:
                    yield info
            while known is not None:
                self._remove(known.key)
                known = next(before, None)

    def _remove(self, path: str) -> None:
        self._state.edits[path] = None
        self.removed += 1

    def _fetch(self, batch: Sequence[ObjectInfo]) -> None:
        """Download, hash and store some objects."""
        paths = [self._folder / f"{number}.part" for number in range(len(batch))]
        pairs = list(zip(batch, paths, strict=True))
        in_parallel(lambda pair: self._lake.download(pair[0].key, pair[1]), pairs, self._workers)
        hashed = in_parallel(hash_file, paths, self._workers)
        with PackWriter(self._store) as packs:
            for path, (digest, size) in zip(paths, hashed, strict=True):
                if size >= LOOSE_BYTES:
                    self._blobs.ensure(digest, size, path)
                elif bytes.fromhex(digest) not in packs:
                    packs.add(bytes.fromhex(digest), path.read_bytes())
            places = packs.finish()
        for (info, path), (digest, size) in zip(pairs, hashed, strict=True):
            raw = bytes.fromhex(digest)
            self._state.edits[info.key] = Stored(Entry(info.key, size, raw, ""), places.get(raw, LOOSE))
            self.fetched_bytes += size
            path.unlink()
        self.fetched += len(batch)
        self._progress(f"fetched {self.fetched} raw objects, {self.fetched_bytes >> 20} MiB")

    def _splice(self) -> None:
        self._state.tree = splice(self._store, self._state.tree, self._state.edits, workers=self._workers)
        self._state.edits = {}

    def keep_listing(self, store: ObjectStore, version: DatasetVersion) -> None:
        """Leave the listing for the next ingest, in place of older ones of this version."""
        prefix = _listings(self._lake.uri, version.version)
        data = self._listing.read_bytes()
        key = f"{prefix}{digest_of(data)[:16]}"
        with suppress(ObjectExistsError):
            store.create(key, data)
        store.delete([info.key for info in store.list(prefix) if info.key != key])


def _unchanged(old: ObjectInfo, new: ObjectInfo) -> bool:
    return old.size == new.size and old.modified == new.modified != 0


def _by_bytes(batch: Sequence[ObjectInfo]) -> Iterator[list[ObjectInfo]]:
    """Yield parts of a batch that fit on disk together; an object above that is a part of its own."""
    part: list[ObjectInfo] = []
    size = 0
    for info in batch:
        if part and size + info.size > _BATCH_BYTES:
            yield part
            part, size = [], 0
        part.append(info)
        size += info.size
    if part:
        yield part


def _listings(uri: str, version: str) -> str:
    return f"{LISTINGS}/{digest_of(uri.encode())[:32]}/{version}/"


def _listing_of(store: ObjectStore, uri: str, version: str, folder: Path) -> Path | None:
    """Return the listing that a version was made from, or None where it is not there: then all is fetched again."""
    keys = [info.key for info in store.list(_listings(uri, version))]
    if len(keys) != 1:  # an ingest was killed between two listings, or two ran at once: trust neither
        return None
    path = folder / "before.zst"
    store.download(keys[0], path)
    return path


def _lines(path: Path) -> Iterator[ObjectInfo]:
    with path.open("rb") as file, zstandard.ZstdDecompressor().stream_reader(file) as plain:
        for line in io.TextIOWrapper(plain, encoding="utf-8"):
            key, size, modified = json.loads(line)
            yield ObjectInfo(key, size, modified)
