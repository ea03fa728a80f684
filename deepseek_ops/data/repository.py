"""Datasets of a store: commit a folder, check a version out, name it, compare it, verify it.

``DatasetRepository`` is the front of the modules that do it: ``committing`` (why nothing is lost when writers race or
die), ``naming``, ``refs``, ``snapshot``, ``checkout``, ``reading``, ``trees``.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from pydantic import JsonValue

from deepseek_ops.core.ports import ObjectStore, Progress
from deepseek_ops.core.records import DatasetVersion, Digest
from deepseek_ops.data.branching import MergeRequest, MergeResult, create_branch, delete_branch, merge_into
from deepseek_ops.data.checkout import Verify, VerifyReport, selected, verify_tree, write_folder
from deepseek_ops.data.committing import append_commit, commit_body
from deepseek_ops.data.gc_guard import writing
from deepseek_ops.data.history import LogEntry, graph_log, read_commit, version_of
from deepseek_ops.data.layout import require_format
from deepseek_ops.data.merge import Preference
from deepseek_ops.data.naming import VersionNotFoundError, checked_branch, checked_name, resolve
from deepseek_ops.data.packs import Stored
from deepseek_ops.data.reading import CHUNK_BYTES, NoSuchFileError, find_file, read_stored, stream_stored
from deepseek_ops.data.refs import RefEntry, RefLog, all_tags, branch_heads, create_tag, datasets
from deepseek_ops.data.snapshot import SplitOf, no_split, store_folder
from deepseek_ops.data.trees import DatasetDiff, Tree, diff


class DatasetRepository:
    """The datasets of one object store. Safe for use by many threads, processes and machines at once."""

    def __init__(self, store: ObjectStore, *, single_writer: bool = False, workers: int = 8) -> None:
        self._store = store
        self._single_writer = single_writer
        self._workers = workers
        self._ready = False

    @classmethod
    def open(cls, store: ObjectStore, *, single_writer: bool = False, workers: int = 8) -> Self:
        """Return the repository; the first one to open an empty store probes it and marks it as ours.

        Raises UnsafeStoreError when the store overwrites what it must create once, unless this is its only writer
        for ever (``single_writer``), and UnknownFormatError.
        """
        repository = cls(store, single_writer=single_writer, workers=workers)
        repository._require_format()
        return repository

    def _require_format(self) -> None:
        if not self._ready:
            require_format(self._store, single_writer=self._single_writer)
            self._ready = True

    @property
    def store(self) -> ObjectStore:
        """The object store, for what this class has no method for."""
        return self._store

    def commit(
        self,
        folder: Path,
        *,
        name: str,
        message: str,
        author: str,
        lineage: Mapping[str, JsonValue] | None = None,
        branch: str = "main",
        parent: Digest | None = None,
        splits: Mapping[str, int] | None = None,
        split_of: SplitOf = no_split,
        progress: Progress | None = None,
    ) -> DatasetVersion:
        """Make the folder the newest version of a branch and return it.

        Without ``parent`` the folder *is* the dataset: whatever others committed meanwhile becomes the parent. With
        it, the branch must still be there (or have never been, which starts it there): BranchMovedError otherwise. A
        folder equal to the head, with equal lineage and splits, makes no new version, so committing twice is safe.
        """
        with self._guarded(f"commit to {self.log_of(name, branch).name} by {author}") as inner:
            store, log = inner.store, inner.log_of(name, branch)
            last = log.last()
            head = None if last is None or last.deleted else last.version
            start = parent or head or inner._head_of_main(name)
            base = inner.tree(start) if start else Tree.empty(store)
            tree = store_folder(store, folder, parent=base, split_of=split_of, workers=self._workers, progress=progress)
            body = commit_body(tree, name=name, message=message, author=author, splits=splits, lineage=lineage)
            return append_commit(store, log, last, body, parent)

    @contextmanager
    def _guarded(self, holder: str) -> Iterator[Self]:
        """Yield this repository over a store from which no collection takes what is about to be named."""
        self._require_format()
        with writing(self._store, holder=holder) as store:
            inner = type(self)(store, single_writer=self._single_writer, workers=self._workers)
            inner._ready = True
            yield inner

    def log_of(self, name: str, branch: str) -> RefLog:
        """Return the log of a branch, which need not exist. Raises InvalidNameError."""
        return RefLog(self._store, checked_name("dataset", name), checked_branch(branch))

    def _head_of_main(self, name: str) -> Digest | None:
        head = RefLog(self._store, name, "main").head()
        return head.version if head else None

    def resolve(self, name_or_id: str) -> Digest:
        """Return the version id of a tag, ``dataset`` (its main branch), ``dataset@branch``, id or unique id prefix.

        Raises VersionNotFoundError.
        """
        return resolve(self._store, name_or_id)

    def describe(self, version: str) -> dict[str, JsonValue]:
        """Return the commit record of a version. Raises VersionNotFoundError, IntegrityError."""
        return read_commit(self._store, version)

    def load(self, version: str) -> DatasetVersion:
        """Return the record of a version. Raises VersionNotFoundError, IntegrityError."""
        return version_of(version, self.describe(version))

    def tree(self, version: str) -> Tree:
        """Return the tree of a version id, its root page read. Raises VersionNotFoundError, IntegrityError."""
        return Tree.load(self._store, str(self.describe(version)["tree"]))

    def checkout(
        self,
        version_id: str,
        target: Path,
        *,
        patterns: Sequence[str] = (),
        verify: Verify = "all",
        progress: Progress | None = None,
    ) -> None:
        """Write the version, or its files that match a glob, as a new folder: complete and verified, or not at all."""
        files = selected(self.tree(self.resolve(version_id)), patterns)
        write_folder(self._store, files, target, workers=self._workers, verify=verify, progress=progress)

    def files(self, version_id: str, patterns: Sequence[str] = ()) -> list[Stored]:
        """Return the files of a version with their places, or those that match a glob, sorted by path.

        Raises VersionNotFoundError, NothingSelectedError.
        """
        found = selected(self.tree(self.resolve(version_id)), patterns)
        return sorted(found, key=lambda file: file.entry.path)

    def paths(self, version_id: str, *, patterns: Sequence[str] = ()) -> list[str]:
        """Return the paths of a version, or those that match a glob, sorted."""
        return [file.entry.path for file in self.files(version_id, patterns)]

    def read_file(self, version_id: str, path: str) -> bytes:
        """Return one file's bytes, verified. Raises NoSuchFileError, IntegrityError."""
        return read_stored(self._store, self._file(version_id, path))

    def stream_file(self, version_id: str, path: str, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes]:
        """Return an iterator over one file's bytes; it ends with IntegrityError when they were not the file's.

        Raises NoSuchFileError at once.
        """
        return stream_stored(self._store, self._file(version_id, path), chunk_bytes=chunk_bytes)

    def _file(self, version_id: str, path: str) -> Stored:
        version = self.resolve(version_id)
        found = find_file(self.tree(version), path)
        if found is None:
            raise NoSuchFileError(version, path)
        return found

    def log(self, name: str, *, branch: str = "main", limit: int | None = None) -> list[LogEntry]:
        """Return the head of a branch and the versions it was made from, each before its parents.

        Raises VersionNotFoundError for a branch that does not exist, IntegrityError when its history was altered.
        """
        log = self.log_of(name, branch)
        entries = list(graph_log(self._store, log, limit=limit))
        if not entries:
            raise VersionNotFoundError(self._store.uri, log.name)
        return entries

    def datasets(self) -> list[str]:
        """Return the names of the store's datasets, sorted."""
        return datasets(self._store)

    def branches(self, name: str) -> dict[str, RefEntry]:
        """Return branch -> its newest entry (version, time), sorted by name."""
        return branch_heads(self._store, checked_name("dataset", name))

    def branch(self, name: str, branch: str, at: str) -> Digest:
        """Begin a branch at a version, by any name, and return the version's id. No bytes are copied.

        Beginning it there again changes nothing. Raises BranchExistsError, OtherDatasetError, VersionNotFoundError.
        """
        self._require_format()
        dataset, new = checked_name("dataset", name), checked_branch(branch)
        with self._guarded(f"new branch {dataset}@{new}") as inner:
            return create_branch(inner.store, dataset, new, inner.resolve(at))

    def delete_branch(self, name: str, branch: str, *, expected: Digest | None = None) -> Digest:
        """End a branch and return the version it was at. Raises BranchNotFoundError, BranchMovedError."""
        self._require_format()
        return delete_branch(self._store, checked_name("dataset", name), checked_branch(branch), expected=expected)

    def merge(
        self,
        name: str,
        source: str,
        *,
        into: str = "main",
        author: str,
        message: str = "",
        preferences: Sequence[Preference] = (),
        fast_forward: bool = True,
        linear: bool = False,
    ) -> MergeResult:
        """Merge a version, by any name, into a branch; files are compared, none is read or moved.

        ``linear`` redoes the version's changes on top of the branch instead: one parent, as Git's rebase. Raises
        MergeConflictError with every conflict that no preference settles, BranchNotFoundError, BranchContendedError.
        """
        with self._guarded(f"merge into {self.log_of(name, into).name} by {author}") as inner:
            theirs = inner.resolve(source)
            request = MergeRequest(source, theirs, author, message, preferences, fast_forward, linear)
            return merge_into(inner.store, inner.log_of(name, into), request, workers=self._workers)

    def diff(self, old: str, new: str) -> DatasetDiff:
        """Return the paths that differ between two versions; parts they share are not read."""
        return diff(self.tree(self.resolve(old)), self.tree(self.resolve(new)))

    def tag(self, name: str, version: str) -> Digest:
        """Name a version for ever and return its id. Raises TagMovedError when the tag names another one."""
        tag = checked_name("tag", name)
        with self._guarded(f"tag {tag}") as inner:
            digest = inner.resolve(version)
            create_tag(inner.store, tag, digest)
            return digest

    def tags(self) -> dict[str, Digest]:
        """Return tag -> version of the whole store, sorted by tag."""
        return all_tags(self._store)

    def verify(self, version: str, *, fraction: float = 1.0, progress: Progress | None = None) -> VerifyReport:
        """Read every byte of a version, or of a random fraction of its pages, and return what is missing or damaged."""
        tree = self.tree(self.resolve(version))
        if fraction < 1:
            picked = random.sample(tree.pages, math.ceil(fraction * len(tree.pages)))
            tree = Tree(self._store, tree.digest, sorted(picked))
        return verify_tree(self._store, tree, workers=self._workers, progress=progress)
