"""Registered files in Git without their bytes: an LFS pointer names the object the registry's version is made of."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepseek_ops.adapters.git_lfs.agent_upload import note_root
from deepseek_ops.adapters.git_lfs.config import REPOSITORY_KEY, repository_name
from deepseek_ops.adapters.git_lfs.fetching import WeightNotPushedError
from deepseek_ops.adapters.git_lfs.pointer import LfsPointer, parse_pointer, pointer_text, pointers_below
from deepseek_ops.adapters.git_lfs.worktree_git import try_git
from deepseek_ops.core.config.globs import matches_paths
from deepseek_ops.core.errors import ObjectNotFoundError, PermanentError
from deepseek_ops.core.objects import blob_key
from deepseek_ops.core.ports import Blobs, ObjectStore
from deepseek_ops.core.records import FileEntry, FileSet
from deepseek_ops.data.folders import checked_targets
from deepseek_ops.registry import resolve
from deepseek_ops.registry.reading import read_bundle


@dataclass(eq=False)
class PointerTargetError(PermanentError):
    """A file is where a pointer is to be written."""

    path: str

    def __str__(self) -> str:
        return f"{self.path} exists and is something else; move it away, or use --force."


def registered_files(registry: ObjectStore, name: str, version: str, patterns: Sequence[str]) -> list[FileEntry]:
    """Return the files of a registered version that match, or all. Raises VersionNotFoundError, ObjectNotFoundError."""
    found = resolve(registry, name, version)
    bundle = read_bundle(registry, found.version, digest=found.bundle)
    chosen = [entry for entry in bundle.files if not patterns or matches_paths(list(patterns), [entry.path])]
    for pattern in patterns:
        if not any(matches_paths([pattern], [entry.path]) for entry in chosen):
            raise ObjectNotFoundError(f"{registry.uri}/v{bundle.version}/{pattern}")
    return chosen


def write_pointers(
    store: ObjectStore, folder: Path, files: Sequence[FileEntry], *, replace: bool = False
) -> list[FileEntry]:
    """Write a pointer below ``folder`` for each file and return those that were written or are there already.

    The repository's root is noted first, as a push would: from then on the object is kept for it. Raises
    WeightNotPushedError for a file whose object is not in the store, PointerTargetError, UnsafeTargetError.
    """
    repository = _repository(folder)
    targets = [Path(path) for path in checked_targets(folder, [entry.path for entry in files])]
    for entry, target in zip(files, targets, strict=True):
        text = pointer_text(LfsPointer(entry.digest, entry.size)).encode()
        if target.exists() and target.read_bytes() != text and not replace:
            raise PointerTargetError(str(target))
        note_root(store, repository, entry.digest, entry.size)
        info = store.head(blob_key(entry.digest))
        if info is None or info.size != entry.size:
            raise WeightNotPushedError(entry.path, entry.digest, store.uri)
        fresh = target.with_name(f".{target.name}.{os.getpid()}")
        fresh.write_bytes(text)
        fresh.replace(target)
    return list(files)


def take_pointers(folder: Path, blobs: Blobs, *, store: str) -> list[FileEntry]:
    """Return the objects that the pointers of a checkout name, and remove the pointers from the folder.

    What is left is the code; the objects are in the same store under the digest the pointer gives, so nothing is
    downloaded to make them part of a run. Raises WeightNotPushedError for an object that was never pushed,
    LfsPointerError for a damaged pointer.
    """
    entries = []
    for path, pointer in pointers_below(folder):
        if blobs.size_of(pointer.oid) != pointer.size:
            raise WeightNotPushedError(path, pointer.oid, store)
        entries.append(FileEntry(path=path, size=pointer.size, digest=pointer.oid))
        (folder / path).unlink()
    return entries


def pushed_files(store: ObjectStore, files: Mapping[str, bytes]) -> FileSet:
    """Return what pointer files (path -> text) name as a set of stored files: a weight pushed with Git LFS, registered
    by its digest. Raises WeightNotPushedError, and InvalidRecordError's kin for a path that leaves its folder.
    """
    entries = []
    for path, text in sorted(files.items()):
        pointer = parse_pointer(text, file=path)
        if pointer is None:
            raise PointerTargetError(path)
        info = store.head(blob_key(pointer.oid))
        if info is None or info.size != pointer.size:
            raise WeightNotPushedError(path, pointer.oid, store.uri)
        entries.append(FileEntry(path=path, size=pointer.size, digest=pointer.oid))
    return FileSet(files=tuple(entries))


def _repository(folder: Path) -> str:
    status, output, _ = try_git(folder, "config", "--get", REPOSITORY_KEY)
    if status == 0:
        return output.decode().strip()
    status, output, _ = try_git(folder, "remote", "get-url", "origin")
    return repository_name(output.decode().strip() if status == 0 else "local")
