"""The files of a version in path order, each verified, without a folder and within a fixed memory bound."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fnmatch import translate
from re import compile as compile_pattern

from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.data.checkout import NothingSelectedError
from deepseek_ops.data.packs import Stored, plan_reads, read_packed, stored_files
from deepseek_ops.data.pages import LOOSE, PageRef
from deepseek_ops.data.parallel import in_order
from deepseek_ops.data.reading import stream_stored
from deepseek_ops.data.trees import Tree

BATCH_BYTES = 32 << 20
"""Small files held at once."""


def pages_of(tree: Tree, *, workers: int = 4) -> Iterator[tuple[PageRef, list[Stored]]]:
    """Yield each page with its files, in path order; some pages are read ahead."""
    pages = in_order(lambda ref: stored_files(tree.read_one(ref)), tree.pages, workers)
    yield from zip(tree.pages, pages, strict=True)


def stored_in_order(tree: Tree, patterns: Sequence[str] = (), *, split: str = "") -> Iterator[Stored]:
    """Yield the files that match one of the globs and are of the split; both empty: all.

    Raises NothingSelectedError after the last page when nothing was yielded.
    """
    wanted = compile_pattern("|".join(translate(pattern) for pattern in patterns)) if patterns else None
    found = False
    for _, files in pages_of(tree):
        for file in files:
            if (wanted is None or wanted.match(file.entry.path)) and (not split or file.entry.split == split):
                found = True
                yield file
    if not found:
        raise NothingSelectedError((*patterns, *([f"split {split}"] if split else [])))


def contents(store: ObjectStore, files: Iterable[Stored]) -> Iterator[tuple[Stored, Iterable[bytes]]]:
    """Yield each file with its bytes in chunks, in the order given; the chunks must be read before the next file.

    Neighbours in a pack cost one request. Raises IntegrityError while a file's chunks are read, ObjectNotFoundError.
    """
    for batch in _batches(files):
        packed: dict[bytes, bytes] = {}
        for read in plan_reads(batch):
            for file, content in read_packed(store, read):
                packed[file.entry.digest] = bytes(content)
        for file in batch:
            yield file, stream_stored(store, file) if file.location == LOOSE else (packed[file.entry.digest],)


def _batches(files: Iterable[Stored]) -> Iterator[list[Stored]]:
    batch: list[Stored] = []
    size = 0
    for file in files:
        batch.append(file)
        size += file.entry.size if file.location != LOOSE else 0
        if size >= BATCH_BYTES or len(batch) >= 4096:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
