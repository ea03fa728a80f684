"""The weights a run needs, and no others: pointer files of a checkout replaced by verified content.

Content comes through a cache in the layout of ``.git/lfs``, which several processes and checkouts of a machine may
share: it can be deleted at any time, and what is taken from it is hashed again.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deepseek_ops.adapters.git_lfs.pointer import LfsPointer, pointers_below, read_pointer_file
from deepseek_ops.adapters.git_lfs.resuming import download_resuming
from deepseek_ops.adapters.git_lfs.worktree_git import git
from deepseek_ops.core.config.globs import matches_paths
from deepseek_ops.core.errors import IntegrityError, LocalDiskError, ObjectNotFoundError, PermanentError
from deepseek_ops.core.ports import ObjectStore

_FICLONE = 0x40049409
_NO_CLONE = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM, errno.EACCES)


@dataclass(eq=False)
class WeightNotPushedError(PermanentError):
    """A pointer names an object that the store does not have."""

    path: str
    oid: str
    store: str

    def __str__(self) -> str:
        return (
            f"{self.path} is a Git LFS pointer to {self.oid}, which {self.store} does not have: where the weight was "
            f"committed, run `git lfs push --object-id origin {self.oid}`, or `git lfs push --all origin`."
        )


@dataclass(eq=False)
class NoPointerMatchesError(PermanentError):
    """A pattern selects no pointer of the checkout."""

    folder: str
    pattern: str
    known: tuple[str, ...]

    def __str__(self) -> str:
        known = ", ".join(self.known[:10]) or "none"
        return f"{self.pattern!r} matches no Git LFS pointer in {self.folder}; it has {known}."


@dataclass(frozen=True, slots=True)
class FetchReport:
    """What one fetch did."""

    fetched: tuple[str, ...]
    """Paths that hold their content now."""
    left: tuple[str, ...]
    """Pointers that were not asked for."""
    num_bytes: int
    """Of the fetched files."""
    downloaded_bytes: int
    """Of objects that were not in the cache."""


def fetch_weights(
    store: ObjectStore,
    folder: Path,
    patterns: Sequence[str] = (),
    *,
    cache: Path | None = None,
    workers: int = 4,
    tell: Callable[[str], None] = lambda _path: None,
) -> FetchReport:
    """Replace the pointers below ``folder`` whose path matches by their verified content.

    Each file changes from pointer to whole content in one step, so a second call, or one after a kill, goes on. Without
    a ``cache`` objects are downloaded beside the folder's files and are not kept.

    Args:
        store: Where the objects are.
        folder: A checkout, such as ``GIT_LFS_SKIP_SMUDGE=1 git clone`` leaves.
        patterns: Globs; one without a slash means files of that name in any folder. None selects everything.
        cache: Folder for downloaded objects, such as ``lfs.storage`` of a clone.
        workers: Objects fetched at once.
        tell: Called with each path that is done.

    Raises:
        NoPointerMatchesError: A pattern selects nothing: a misspelt weight must not become a run without it.
        WeightNotPushedError, IntegrityError, StoreUnavailableError, LocalDiskError, LfsPointerError: By name.
    """
    found = dict(pointers_below(folder))
    chosen = _chosen(folder, found, patterns)
    keep = cache or folder / f".fetching-{secrets.token_hex(4)}"
    fresh: set[str] = set()

    def fetch(path: str) -> None:
        pointer = found[path]
        if _ensure(store, keep, path, pointer):
            fresh.add(pointer.oid)
        _replace(folder / path, pointer, object_path(keep, pointer.oid))
        tell(path)

    try:
        with ThreadPoolExecutor(workers, thread_name_prefix="weights") as pool:
            list(pool.map(fetch, chosen))
    finally:
        if cache is None:
            shutil.rmtree(keep, ignore_errors=True)
    sizes = {pointer.oid: pointer.size for pointer in found.values()}
    return FetchReport(
        fetched=tuple(chosen),
        left=tuple(path for path in found if path not in chosen),
        num_bytes=sum(found[path].size for path in chosen),
        downloaded_bytes=sum(sizes[oid] for oid in fresh),
    )


def refresh_index(folder: Path, paths: Sequence[str]) -> None:
    """Let Git see that the fetched files are what their pointers name: it takes another size for a change, unread."""
    tracked = set(git(folder, "ls-files", "-z").decode(errors="surrogateescape").split("\x00"))
    names = "".join(f"{path}\x00" for path in paths if path in tracked)
    if names:
        git(folder, "update-index", "-q", "-z", "--stdin", data=names.encode(errors="surrogateescape"))


def object_path(storage: Path, oid: str) -> Path:
    """Return where git-lfs keeps an object below ``lfs.storage``."""
    return storage / "objects" / oid[:2] / oid[2:4] / oid


def _chosen(folder: Path, found: dict[str, LfsPointer], patterns: Sequence[str]) -> list[str]:
    if not patterns:
        return list(found)
    chosen: set[str] = set()
    for pattern in patterns:
        anywhere = pattern if "/" in pattern else f"**/{pattern}"
        matched = {path for path in found if matches_paths([anywhere], [path])}
        already = any(matches_paths([anywhere], [path]) for path in _files(folder)) if not matched else True
        if not already:
            raise NoPointerMatchesError(str(folder), pattern, tuple(found))
        chosen |= matched
    return [path for path in found if path in chosen]


def _files(folder: Path) -> list[str]:
    """Return every file's path: a weight that was fetched before is no pointer any more, and no mistake."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _ensure(store: ObjectStore, cache: Path, path: str, pointer: LfsPointer) -> bool:
    """Make sure the cache holds the object, verified now, and return whether it was downloaded."""
    target = object_path(cache, pointer.oid)
    if _verified(target, pointer):
        return False
    partial = cache / "incomplete" / f"{pointer.oid}.deepseek-ops"
    try:
        done = download_resuming(store, pointer.oid, pointer.size, partial)
    except ObjectNotFoundError:
        raise WeightNotPushedError(path, pointer.oid, store.uri) from None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        done.replace(target)
    except FileNotFoundError:
        if not _verified(target, pointer):  # else somebody else moved it there meanwhile
            raise LocalDiskError(str(target), "it was taken away while it was written") from None
    except OSError as error:
        raise LocalDiskError(str(target), error.strerror or str(error)) from error
    return True


def _verified(target: Path, pointer: LfsPointer) -> bool:
    """Return whether a cached object is whole; a damaged one is removed."""
    try:
        with target.open("rb", buffering=0) as file:
            same_size = os.fstat(file.fileno()).st_size == pointer.size
            if same_size and hashlib.file_digest(file, "sha256").hexdigest() == pointer.oid:
                return True
    except FileNotFoundError:
        return False
    except OSError as error:
        raise LocalDiskError(str(target), error.strerror or str(error)) from error
    target.unlink(missing_ok=True)
    return False


def _replace(place: Path, pointer: LfsPointer, source: Path) -> None:
    """Put the object in the pointer's place, in one step and with the pointer's mode.

    A clone where the file system can, else a copy; never a link, for a program that writes to its weight in place would
    change the cache. Raises IntegrityError when the place holds something else by now.
    """
    if read_pointer_file(place) != pointer:
        raise IntegrityError(str(place), f"a pointer to {pointer.oid}", "something else: it was changed meanwhile")
    fresh = place.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with source.open("rb") as file, fresh.open("xb") as copy:
            if not _cloned(file.fileno(), copy.fileno()):
                shutil.copyfileobj(file, copy, 1 << 20)
        fresh.chmod(place.stat().st_mode & 0o777)
        if fresh.stat().st_size != pointer.size:
            raise IntegrityError(str(place), f"{pointer.size} bytes", f"{fresh.stat().st_size} bytes")
        fresh.replace(place)
    except OSError as error:
        raise LocalDiskError(str(place), error.strerror or str(error)) from error
    finally:
        with suppress(OSError):
            fresh.unlink(missing_ok=True)


def _cloned(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno in _NO_CLONE:
            return False
        raise
    return True
