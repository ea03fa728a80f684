"""From a stored tree to a folder: every byte hashed, nothing outside the folder, all of it or nothing."""

from __future__ import annotations

import re
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import translate
from functools import partial
from itertools import chain
from pathlib import Path

from deepseek_ops.core.errors import IntegrityError, ObjectNotFoundError, PermanentError
from deepseek_ops.core.ports import ObjectStore, Progress
from deepseek_ops.core.records import FileEntry
from deepseek_ops.data.blobs import StoreBlobs
from deepseek_ops.data.folders import local_error
from deepseek_ops.data.packs import PackRead, Stored, one_by_one, plan_reads, read_packed, stored_files
from deepseek_ops.data.pages import LOOSE, Entry, PageRef
from deepseek_ops.data.parallel import in_order
from deepseek_ops.data.progress import Meter
from deepseek_ops.data.trees import Tree
from deepseek_ops.data.writing import FolderWriter, Verify, verification

__all__ = [
    "NothingSelectedError",
    "TargetNotEmptyError",
    "Verify",
    "VerifyReport",
    "selected",
    "stream_selected",
    "verification",
    "verify_tree",
    "write_folder",
]

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
    return list(stream_selected(tree, patterns))


def stream_selected(tree: Tree, patterns: Sequence[str] = ()) -> Iterator[Stored]:
    """Yield what ``selected`` returns with few pages in memory: for trees of millions of files."""
    prefixes = [_SPECIAL.split(pattern, maxsplit=1)[0] for pattern in patterns]
    refs = dict.fromkeys(chain.from_iterable(tree.below(prefix) for prefix in prefixes)) if patterns else tree.pages
    wanted = re.compile("|".join(translate(pattern) for pattern in patterns))
    found = False
    for page in in_order(tree.read_one, refs, tree.workers) if len(refs) > 1 else map(tree.read_one, refs):
        for file in stored_files(page):
            if not patterns or wanted.match(file.entry.path):
                found = True
                yield file
    if patterns and not found:
        raise NothingSelectedError(tuple(patterns))


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
    each is checked in any case. ``files`` may be a stream, of which few are held at once; ``progress`` hears of a
    fraction when it is a sequence.

    Raises TargetNotEmptyError, UnsafeTargetError, IntegrityError, ObjectNotFoundError, LocalDiskError.
    """
    meter = Meter(progress, "wrote")
    if progress is not None and isinstance(files, Sequence):
        meter.expect(len(files), sum(file.entry.size for file in files))
    staging = target.parent / f".{secrets.token_hex(8)}.part"
    try:
        if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
            raise TargetNotEmptyError(str(target))
        staging.mkdir(parents=True)
        FolderWriter(store, staging, verification(verify), meter, workers).write(files)
        staging.rename(target)
    except OSError as error:
        raise local_error(target, error) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    meter.finish()


def verify_tree(store: ObjectStore, tree: Tree, *, workers: int = 8, progress: Progress | None = None) -> VerifyReport:
    """Read every page and every file of a tree and say what is wrong."""
    blobs = StoreBlobs(store)
    meter = Meter(progress, "verified", files=tree.num_files, num_bytes=tree.num_bytes)

    def check_page(ref: PageRef) -> list[str]:
        files: list[Stored] = []
        problems = _problem(lambda: files.extend(stored_files(tree.read_one(ref))))
        for read in plan_reads(files):
            problems += _pack_problems(store, read)
        for file in files:
            if file.location == LOOSE:
                problems += _problem(partial(blobs.verify, _record(file.entry)))
        meter.add(ref.num_files, ref.num_bytes)
        return problems

    problems = chain.from_iterable(in_order(check_page, tree.pages, workers))
    report = VerifyReport(tree.num_files, tree.num_bytes, tuple(problems))
    meter.finish()
    return report


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
