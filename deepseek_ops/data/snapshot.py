"""From a folder to a stored tree: what a version of a folder is, and that it appears as a whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.ports import ObjectStore, Progress
from deepseek_ops.data.blobs import StoreBlobs
from deepseek_ops.data.folders import STAT_FIELDS, scan_runs
from deepseek_ops.data.hashing import LargeFiles, SmallFiles
from deepseek_ops.data.layout import tree_key
from deepseek_ops.data.listing import listings
from deepseek_ops.data.packs import PackWriter
from deepseek_ops.data.pages import encode_tree, tree_digest
from deepseek_ops.data.progress import Meter
from deepseek_ops.data.statcache import StatCache
from deepseek_ops.data.storing import PageStore
from deepseek_ops.data.trees import Tree

REMEMBERED = 1 << 20
"""Contents of one commit among which equal ones are found; each is about 150 bytes of memory."""

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

    ``progress`` hears of what is stored, measured by the parent's size or, without one, by a count of the folder.
    Raises EmptyDatasetError, UnstorableFileError, ChangedWhileReadError, LocalDiskError.
    """
    meter = _meter(progress, folder, parent)
    splits = None if split_of is no_split else split_of
    with (
        StatCache(folder) as cache,
        PackWriter(store, remember=REMEMBERED, sent=partial(cache.remember_pack, store.uri)) as packs,
        SmallFiles(str(folder)) as small,
        LargeFiles(str(folder), StoreBlobs(store), cache, workers) as large,
        PageStore(store, parent, cache, packs, small, large, splits=splits, workers=workers, meter=meter) as storing,
    ):
        for listing in listings(scan_runs(folder)):
            storing.take(listing)
        pages = storing.finish()
        if not pages:
            raise EmptyDatasetError(str(folder))
        digest = tree_digest(pages)
        if digest != parent.digest:
            store.put_blob(tree_key(digest), encode_tree(pages))
        cache.finish()
    meter.finish()
    return Tree(store, digest, pages)


def _meter(progress: Progress | None, folder: Path, parent: Tree) -> Meter:
    if progress is None:
        return Meter(None, "stored")
    files, num_bytes = parent.num_files, parent.num_bytes
    if not files:
        for run in scan_runs(folder):
            files += len(run.names)
            num_bytes += sum(run.stats[::STAT_FIELDS])
    return Meter(progress, "stored", files=files, num_bytes=num_bytes)
