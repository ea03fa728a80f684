"""From a stored tree to a folder: every byte hashed, nothing outside the folder, all of it or nothing."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal

from deepseek_ops.core.errors import IntegrityError, ObjectNotFoundError, PermanentError
from deepseek_ops.core.ports import ObjectStore, Progress
from deepseek_ops.core.records import FileEntry
from deepseek_ops.data.blobs import StoreBlobs, hash_file
from deepseek_ops.data.folders import checked_targets, local_error
from deepseek_ops.data.layout import blob_key
from deepseek_ops.data.packs import PackRead, Stored, one_by_one, plan_reads, read_packed, stored_files
from deepseek_ops.data.pages import LOOSE, Entry, PageRef
from deepseek_ops.data.parallel import in_order, in_parallel
from deepseek_ops.data.progress import Meter
from deepseek_ops.data.trees import Tree

Verify = Literal["all", "sample", "none"]
"""Which files a checkout hashes."""
SAMPLE_OF = 16

_SPECIAL = re.compile(r"[*?\[]")


@dataclass(eq=False)
class TargetNotEmptyError(PermanentError):
    """A version was to be written over other files."""

    target: str

    def __str__(self) -> str:
        return f"{self.target} exists and is not empty; remove it, or check out to a new folder."


@dataclass(eq=False)
class NothingSelectedError(PermanentError):
    """Patterns that match no file of the version."""

    patterns: tuple[str, ...]

    def __str__(self) -> str:
        return f"no file of the version matches {', '.join(self.patterns)}; `data diff` and a full checkout show paths."


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What reading all of a version back found."""

    num_files: int
    num_bytes: int
    problems: tuple[str, ...]
    """One sentence for each page, pack stretch or object that is missing or damaged; empty when all is well."""


def selected(tree: Tree, patterns: Sequence[str] = ()) -> list[Stored]:
    """Return the files whose path matches one of the globs (``*`` crosses ``/``), all without globs.

    Only pages that can hold a match are read. Raises NothingSelectedError.
    """
    prefixes = [_SPECIAL.split(pattern, maxsplit=1)[0] for pattern in patterns]
    refs = dict.fromkeys(chain.from_iterable(tree.below(prefix) for prefix in prefixes)) if patterns else tree.pages
    pages = tree.read(refs)
    files = [file for page in pages for file in stored_files(page)]
    if patterns:
        wanted = re.compile("|".join(translate(pattern) for pattern in patterns))
        files = [file for file in files if wanted.match(file.entry.path)]
        if not files:
            raise NothingSelectedError(tuple(patterns))
    return files


def write_folder(
    store: ObjectStore,
    files: Iterable[Stored],
    target: Path,
    *,
    workers: int = 8,
    verify: Verify = "all",
    progress: Progress | None = None,
) -> None:
    """Write the files as a new folder: it appears complete, with every file verified, or not at all.

    ``verify`` says which files are hashed: ``all`` of them, a random ``sample`` of one in 16, or ``none``; the size of
    each is checked in any case.

    Raises TargetNotEmptyError, UnsafeTargetError, IntegrityError, ObjectNotFoundError, LocalDiskError.
    """
    staging = target.parent / f".{secrets.token_hex(8)}.part"
    try:
        if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
            raise TargetNotEmptyError(str(target))
        staging.mkdir(parents=True)
        _write_files(store, list(files), staging, workers, verification(verify))
        Meter(progress, "wrote").finish()
        staging.rename(target)
    except OSError as error:
        raise local_error(target, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_files(
    store: ObjectStore, files: Sequence[Stored], folder: Path, workers: int, check: Callable[[bytes], bool]
) -> None:
    paths = checked_targets(folder, [file.entry.path for file in files], fresh=True)
    target_of = {file.entry.path: path for file, path in zip(files, paths, strict=True)}

    def write_pack(read: PackRead) -> None:
        for file, content in read_packed(store, read, check):
            _write_file(target_of[file.entry.path], content)

    def write_loose(file: Stored) -> None:
        path = Path(target_of[file.entry.path])
        store.download(blob_key(file.entry.digest.hex()), path)
        if not check(file.entry.digest):
            return
        actual = hash_file(path)[0]
        if actual != file.entry.digest.hex():
            raise IntegrityError(f"{file.entry.path} in {store.uri}", file.entry.digest.hex(), actual)

    in_parallel(write_pack, plan_reads(files), workers)
    in_parallel(write_loose, (file for file in files if file.location == LOOSE), workers)


def verification(verify: Verify) -> Callable[[bytes], bool]:
    """Return which files, by digest, are to be hashed. A sample is another one each time."""
    if verify == "sample":
        wanted = secrets.randbelow(SAMPLE_OF)
        return lambda digest: digest[0] % SAMPLE_OF == wanted
    return lambda _digest: verify == "all"


def _write_file(path: str, content: memoryview) -> None:
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            while content:
                content = content[os.write(handle, content) :]
        finally:
            os.close(handle)
    except OSError as error:
        raise local_error(path, error) from error


def verify_tree(store: ObjectStore, tree: Tree, *, workers: int = 8, progress: Progress | None = None) -> VerifyReport:
    """Read every page and every file of a tree and say what is wrong."""
    blobs = StoreBlobs(store)

    def check_page(ref: PageRef) -> list[str]:
        files: list[Stored] = []
        problems = _problem(lambda: files.extend(stored_files(tree.read_one(ref))))
        for read in plan_reads(files):
            problems += _pack_problems(store, read)
        for file in files:
            if file.location == LOOSE:
                problems += _problem(partial(blobs.verify, _record(file.entry)))
        return problems

    problems = chain.from_iterable(in_order(check_page, tree.pages, workers))
    Meter(progress, "verified").finish()
    return VerifyReport(tree.num_files, tree.num_bytes, tuple(problems))


def _pack_problems(store: ObjectStore, read: PackRead) -> list[str]:
    try:
        deque(read_packed(store, read), maxlen=0)
    except ObjectNotFoundError as error:
        return [f"{error} It holds {len(read.files)} files, {read.files[0].entry.path} first."]
    except IntegrityError as error:
        if len(read.files) == 1:
            return [str(error)]
        return list(chain.from_iterable(_pack_problems(store, single) for single in one_by_one(read)))
    return []


def _problem(work: Callable[[], object]) -> list[str]:
    try:
        work()
    except (IntegrityError, ObjectNotFoundError) as error:
        return [str(error)]
    return []


def _record(entry: Entry) -> FileEntry:
    return FileEntry(path=entry.path, size=entry.size, digest=entry.digest.hex())
