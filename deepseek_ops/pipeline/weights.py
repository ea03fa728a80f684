"""Weights wherever they are named: a local file, an LFS pointer, an object of the store, a registered version."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath

from deepseek_ops.adapters.git_lfs.config import lfs_storage
from deepseek_ops.adapters.git_lfs.fetching import WeightNotPushedError, object_path
from deepseek_ops.adapters.git_lfs.pointer import LfsPointer, read_pointer_file
from deepseek_ops.adapters.git_lfs.worktree_git import WorkTreeGitError
from deepseek_ops.core.errors import ObjectNotFoundError
from deepseek_ops.core.objects import blob_key
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import FileSet
from deepseek_ops.registry.weights import (
    LocalRanges,
    ObjectRanges,
    Ranges,
    WeightFormatError,
    WeightInfo,
    combine_shards,
    is_weight_file,
    model_weights,
    read_shard_index,
    read_weights,
)
from deepseek_ops.registry.weights.sharded import INDEX_SUFFIX, MAX_INDEX_BYTES

_OID = re.compile(r"(sha256:)?([0-9a-f]{64})")

OpenStore = Callable[[], ObjectStore]
"""Opens the store when it is needed: a weight that lies here needs none."""


def weights_of_path(path: Path, open_store: OpenStore) -> WeightInfo:
    """Return what a weight file, the index of a sharded model, or a folder with either holds.

    A pointer is followed: to the clone's own LFS objects, else to the store. Raises WeightFormatError, and
    WeightNotPushedError for a pointer to nowhere.
    """
    if path.is_dir():
        return _folder(path, open_store)
    if path.name.endswith(INDEX_SUFFIX):
        return _indexed(path, open_store)
    return read_weights(ranges_of(path, open_store))


def ranges_of(path: Path, open_store: OpenStore) -> Ranges:
    """Return the bytes of a file, of the object its pointer names when it is one."""
    pointer = read_pointer_file(path)
    if pointer is None:
        return LocalRanges(path)
    here = local_object(path.parent, pointer)
    if here is not None:
        return LocalRanges(here, name=str(path))
    return object_ranges(open_store(), pointer, name=str(path))


def object_ranges(store: ObjectStore, pointer: LfsPointer, *, name: str) -> ObjectRanges:
    """Return the bytes of an LFS object in the store. Raises WeightNotPushedError."""
    info = store.head(blob_key(pointer.oid))
    if info is None:
        raise WeightNotPushedError(name, pointer.oid, store.uri)
    return ObjectRanges(store, info.key, info.size, name=name)


def weights_of_object(store: ObjectStore, oid: str) -> WeightInfo:
    """Return what an object of the store holds. Raises ObjectNotFoundError, WeightFormatError."""
    info = store.head(blob_key(oid))
    if info is None:
        raise ObjectNotFoundError(f"{store.uri}/{blob_key(oid)}")
    return read_weights(ObjectRanges(store, info.key, info.size, name=oid))


def weights_of_files(
    files: FileSet, store: ObjectStore, key: Callable[[str, str], str] = lambda _path, digest: blob_key(digest)
) -> WeightInfo | None:
    """Return what a set of stored files holds as one model, or None when no file of it is a weight.

    Args:
        files: A checkpoint or one format of a version.
        store: Where the files are.
        key: Returns the key of a file from its path and digest: content-addressed, or a registry's folder.
    """
    return model_weights(
        files, lambda entry: ObjectRanges(store, key(entry.path, entry.digest), entry.size, name=entry.path)
    )


def parse_oid(text: str) -> str | None:
    """Return the digest in ``sha256:<hex>`` or ``<hex>``, or None for other text."""
    match = _OID.fullmatch(text)
    return match[2] if match else None


def local_object(folder: Path, pointer: LfsPointer) -> Path | None:
    """Return git-lfs's own copy of an object in the clone that ``folder`` is in, or None."""
    try:
        place = object_path(lfs_storage(folder), pointer.oid)
    except WorkTreeGitError:
        return None
    return place if place.is_file() and place.stat().st_size == pointer.size else None


def _folder(folder: Path, open_store: OpenStore) -> WeightInfo:
    if index := next(iter(sorted(folder.glob(f"*{INDEX_SUFFIX}"))), None):
        return _indexed(index, open_store)
    paths = sorted(path for path in folder.iterdir() if path.is_file() and is_weight_file(path.name))
    return combine_shards(_read_all({path.name: path for path in paths}, open_store), file=str(folder))


def _indexed(index: Path, open_store: OpenStore) -> WeightInfo:
    if index.stat().st_size > MAX_INDEX_BYTES:
        raise WeightFormatError(str(index), f"its index has {index.stat().st_size:,} bytes")
    described = read_shard_index(index.read_bytes(), file=str(index))
    for name in described.files:
        if not (index.parent / name).is_file():
            raise WeightFormatError(str(index), f"its file {PurePosixPath(name).name} is missing")
    shards = _read_all({name: index.parent / name for name in described.files}, open_store)
    return combine_shards(shards, file=str(index), index=described)


def _read_all(paths: Mapping[str, Path], open_store: OpenStore) -> dict[str, WeightInfo]:
    return {name: read_weights(ranges_of(path, open_store)) for name, path in paths.items()}
