"""Datasets of a store: commit a folder, check a version out, name it, compare it, verify it.

``DatasetRepository`` is the front of the modules that do it: ``committing`` (why nothing is lost when writers race or
die), ``naming``, ``refs``, ``snapshot``, ``checkout``, ``reading``, ``trees``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import JsonValue

from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import DatasetVersion, Digest
from deepseek_ops.data.checkout import VerifyReport, selected, verify_tree, write_folder
from deepseek_ops.data.committing import append_commit, commit_body, read_commit, version_of
from deepseek_ops.data.layout import require_format
from deepseek_ops.data.naming import VersionNotFoundError, checked_name, resolve
from deepseek_ops.data.packs import Stored
from deepseek_ops.data.parallel import in_parallel
from deepseek_ops.data.reading import CHUNK_BYTES, NoSuchFileError, find_file, read_stored, stream_stored
from deepseek_ops.data.refs import RefEntry, RefLog, create_tag
from deepseek_ops.data.snapshot import SplitOf, no_split, store_folder
from deepseek_ops.data.trees import DatasetDiff, Tree, diff


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One version in the history of a branch."""

    version: Digest
    at: str
    """ISO 8601, UTC."""
    message: str
    author: str
    num_files: int
    num_bytes: int


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
    ) -> DatasetVersion:
        """Make the folder the newest version of a branch and return it.

        Without ``parent`` the folder *is* the dataset: whatever others committed meanwhile becomes the parent. With
        it, the branch must still be there (or not exist yet, which starts it there): BranchMovedError otherwise. A
        folder equal to the head, with equal lineage and splits, makes no new version, so committing twice is safe.
        """
        checked_name("dataset", name)
        self._require_format()
        log = RefLog(self._store, name, branch)
        head = log.head()
        start = parent or (head.version if head else self._head_of_main(name))
        base = self.tree(start) if start else Tree.empty(self._store)
        tree = store_folder(self._store, folder, parent=base, split_of=split_of, workers=self._workers)
        body = commit_body(tree, name=name, message=message, author=author, splits=splits, lineage=lineage)
        return append_commit(self._store, log, head, body, parent)

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

    def checkout(self, version_id: str, target: Path, *, patterns: Sequence[str] = ()) -> None:
        """Write the version, or its files that match a glob, as a new folder: complete and verified, or not at all."""
        version = self.resolve(version_id)
        write_folder(self._store, selected(self.tree(version), patterns), target, workers=self._workers)

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
        """Return the versions a branch has had, newest first.

        Raises VersionNotFoundError for a branch that does not exist, IntegrityError when its history was altered.
        """
        log = RefLog(self._store, checked_name("dataset", name), branch)
        entries = in_parallel(self._log_entry, log.entries(limit=limit), self._workers)
        if not entries:
            raise VersionNotFoundError(self._store.uri, log.name)
        return entries

    def _log_entry(self, entry: RefEntry) -> LogEntry:
        body = self.describe(entry.version)
        version = version_of(entry.version, body)
        message, author = str(body.get("message")), str(body.get("author"))
        return LogEntry(version.version, entry.at, message, author, version.num_files, version.num_bytes)

    def diff(self, old: str, new: str) -> DatasetDiff:
        """Return the paths that differ between two versions; parts they share are not read."""
        return diff(self.tree(self.resolve(old)), self.tree(self.resolve(new)))

    def tag(self, name: str, version: str) -> Digest:
        """Name a version for ever and return its id. Raises TagMovedError when the tag names another one."""
        self._require_format()
        digest = self.resolve(version)
        create_tag(self._store, checked_name("tag", name), digest)
        return digest

    def verify(self, version: str) -> VerifyReport:
        """Read every byte of a version and return what is missing or damaged."""
        return verify_tree(self._store, self.tree(self.resolve(version)), workers=self._workers)
