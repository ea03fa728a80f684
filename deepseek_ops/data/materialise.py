"""A version, or a part of it, as a folder of this machine: complete and verified, or not there at all.

With a cache each content is fetched once per machine and linked or copied from there. The folder is built beside its
place under a lock and moved there in one step with the record that says what it is; what a killed process left of one
is removed by the next try. A folder that is already there and holds exactly what is asked for is left as it is.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from deepseek_ops.core.errors import IntegrityError, PermanentError
from deepseek_ops.core.ports import ObjectStore, Progress
from deepseek_ops.core.records import DatasetVersion, Digest
from deepseek_ops.data.blobs import hash_file
from deepseek_ops.data.cache import CacheUse, Mode, ObjectCache
from deepseek_ops.data.checkout import TargetNotEmptyError, Verify, selected, verification, write_folder
from deepseek_ops.data.collisions import require_distinct
from deepseek_ops.data.folders import checked_targets, local_error
from deepseek_ops.data.history import read_commit, version_of
from deepseek_ops.data.layout import blob_key
from deepseek_ops.data.naming import resolve
from deepseek_ops.data.packs import PackRead, Stored, plan_reads, read_packed
from deepseek_ops.data.pages import LOOSE
from deepseek_ops.data.parallel import in_parallel
from deepseek_ops.data.progress import Meter
from deepseek_ops.data.trees import Tree
from deepseek_ops.data.worktree import Worktree, WorktreeRecord, known_files


@dataclass(eq=False)
class NoSuchSplitError(PermanentError):
    """A version has no files in these splits."""

    version: Digest
    splits: tuple[str, ...]
    there: tuple[str, ...]

    def __str__(self) -> str:
        has = f"its files are in {', '.join(self.there)}" if self.there else "its files have no splits, use a glob"
        return f"version {self.version} has no files of split {', '.join(self.splits)}; {has}."


@dataclass(frozen=True, slots=True)
class Materialised:
    """What was written, and how."""

    version: DatasetVersion
    folder: Path
    num_files: int
    num_bytes: int
    present: bool = False
    """The folder was there already, nothing was written."""
    hits: int = 0
    fetched: int = 0
    """Files that came from the cache, and that were fetched into it."""
    dropped: int = 0
    """Cached files that were damaged, hence fetched again."""
    ways: dict[str, int] = field(default_factory=dict)


def materialise(
    store: ObjectStore,
    version: str,
    target: Path,
    *,
    cache: ObjectCache | None = None,
    mode: Mode = "auto",
    patterns: Sequence[str] = (),
    splits: Sequence[str] = (),
    verify: Verify = "sample",
    branch: str = "",
    pointer: str = "",
    workers: int = 8,
    progress: Progress | None = None,
) -> Materialised:
    """Write a version (by any name), or its files that match a glob and are in a split, as the folder ``target``.

    ``verify`` says which files that are in the cache already are hashed: ``all``, a random ``sample`` or ``none``;
    what is fetched always is. ``branch`` and ``pointer`` go into the folder's record, for commits from it. Hard-linked
    files are read-only; take ``mode="copy"`` for a folder that people edit in place. Raises VersionNotFoundError,
    NothingSelectedError, NoSuchSplitError, TargetNotEmptyError, UnsafeTargetError, IntegrityError, LocalDiskError.
    """
    digest = resolve(store, version)
    dataset = version_of(digest, read_commit(store, digest))
    record = WorktreeRecord(
        dataset=dataset.name,
        store=store.uri,
        version=digest,
        branch=branch,
        patterns=tuple(patterns),
        splits=tuple(splits),
        pointer=pointer,
    )
    if (there := _present(target, record)) is not None:
        return Materialised(dataset, target, there[0], there[1], present=True)
    files = chosen(Tree.load(store, dataset.tree), digest, patterns, splits)
    with _staging(target) as staging:
        folder = staging / "folder"
        require_distinct(staging, [file.entry.path for file in files])
        use = CacheUse()
        if cache is None:
            write_folder(store, files, folder, workers=workers, progress=progress)
        else:
            use = _write_cached(store, files, folder, cache, mode, verification(verify), workers, progress)
        tree = Worktree(folder)
        tree.write_index(known_files(folder, [file.entry for file in files]))
        tree.write_record(record)
        if not _moved(folder, target):  # somebody else was first, with what may be the same
            there = _present(target, record)
            return Materialised(dataset, target, *(there or (0, 0)), present=True)
    size = sum(file.entry.size for file in files)
    return Materialised(dataset, target, len(files), size, False, use.hits, use.fetched, use.dropped, dict(use.ways))


def chosen(tree: Tree, version: Digest, patterns: Sequence[str], splits: Sequence[str]) -> list[Stored]:
    """Return the files of a tree that match a glob and are in one of the splits. Raises NoSuchSplitError."""
    files = selected(tree, patterns)
    if not splits:
        return files
    found = [file for file in files if file.entry.split in splits]
    if not found:
        there = sorted({file.entry.split for file in files} - {""})
        raise NoSuchSplitError(version, tuple(splits), tuple(there))
    return found


def _present(target: Path, record: WorktreeRecord) -> tuple[int, int] | None:
    """Return files and bytes when the folder is what is asked for, unchanged. Raises TargetNotEmptyError."""
    tree = Worktree(target)
    if tree.exists and not tree.interrupted and _same(tree.record(), record):
        with tree.locked():
            if not tree.status():
                entries = [known.entry for known in tree.index().values()]
                return len(entries), sum(entry.size for entry in entries)
    try:
        if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
            raise TargetNotEmptyError(str(target))
    except OSError as error:
        raise local_error(target, error) from error
    return None


def _same(one: WorktreeRecord, other: WorktreeRecord) -> bool:
    """Return whether two records name the same files."""
    return (one.version, set(one.patterns), set(one.splits)) == (
        other.version,
        set(other.patterns),
        set(other.splits),
    )


@contextmanager
def _staging(target: Path) -> Iterator[Path]:
    """Give a folder beside the target that goes in any case; those that dead processes left go first."""
    parent, stem = target.absolute().parent, f".{target.name[:100]}."
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for leftover in parent.glob(f"{_literal(stem)}*.part"):
            _remove_if_dead(leftover)
        staging = parent / f"{stem}{secrets.token_hex(8)}.part"
        staging.mkdir()
        handle = os.open(staging, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(handle, fcntl.LOCK_EX)
    except OSError as error:
        raise local_error(target, error) from error
    try:
        yield staging
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(handle)


def _literal(text: str) -> str:
    return "".join(f"[{char}]" if char in "*?[" else char for char in text)


def _remove_if_dead(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(handle)


def _moved(folder: Path, target: Path) -> bool:
    """Move the finished folder to its place; return False when something is there by now."""
    try:
        folder.rename(target)
    except OSError as error:
        if target.is_dir() and any(target.iterdir()):
            return False
        raise local_error(target, error) from error
    return True


def _write_cached(
    store: ObjectStore,
    files: Sequence[Stored],
    folder: Path,
    cache: ObjectCache,
    mode: Mode,
    check: Callable[[bytes], bool],
    workers: int,
    progress: Progress | None,
) -> CacheUse:
    folder.mkdir()
    names = [file.entry.path for file in files]
    target_of = dict(zip(names, checked_targets(folder, names, fresh=True), strict=True))
    meter = Meter(progress, "materialised", files=len(files), num_bytes=sum(file.entry.size for file in files))
    with cache:
        writer = _CachedWriter(store, cache, mode, target_of, check, meter)
        in_parallel(writer.write_pack, plan_reads(files), workers)
        in_parallel(writer.write_loose, (file for file in files if file.location == LOOSE), workers)
        meter.finish()
        return cache.use


@dataclass(frozen=True, slots=True)
class _CachedWriter:
    """Writes files from the cache, and those that are not there into both."""

    _store: ObjectStore
    _cache: ObjectCache
    _mode: Mode
    _target_of: dict[str, str]
    _check: Callable[[bytes], bool]
    _meter: Meter

    def write_pack(self, read: PackRead) -> None:
        missing = [file for file in read.files if not self._placed(file)]
        if not missing:
            return
        with self._cache.fetching(read.pack.hex()):
            # Of several processes that want this pack one has fetched it by now.
            missing = [file for file in missing if not self._placed(file)]
            for part in plan_reads(missing):
                for file, content in read_packed(self._store, part):
                    target = self._target_of[file.entry.path]
                    self._cache.insert(file.entry, content, target, self._mode)
                    self._meter.add(1, file.entry.size)

    def write_loose(self, file: Stored) -> None:
        if self._placed(file):
            return
        digest = file.entry.digest.hex()
        with self._cache.fetching(digest):
            if self._placed(file):
                return
            temporary = self._cache.scratch_path()
            self._store.download(blob_key(digest), Path(temporary))
            actual = hash_file(Path(temporary))[0]
            if actual != digest:
                raise IntegrityError(f"{file.entry.path} in {self._store.uri}", digest, actual)
            self._cache.adopt(file.entry, temporary, self._target_of[file.entry.path], self._mode)
            self._meter.add(1, file.entry.size)

    def _placed(self, file: Stored) -> bool:
        check = self._check(file.entry.digest)
        found = self._cache.place(file.entry, self._target_of[file.entry.path], self._mode, check=check)
        if found:
            self._meter.add(1, file.entry.size)
        return found
