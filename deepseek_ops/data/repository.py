"""Datasets of a store: commit a folder, check a version out, name it, compare it, verify it.

A commit uploads packs, then pages, then the root page, then the commit, and only then adds an entry to the branch's
log. Until that one create-only put nothing refers to what came before it, so a process killed anywhere leaves nothing
half-visible, and the next try finds what is already up. Of writers who race for a place in the log exactly one wins;
the others take the new head as parent of what they have stored and try the next place.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pydantic import JsonValue, TypeAdapter, ValidationError

from deepseek_ops.core.errors import IntegrityError, ObjectNotFoundError, PermanentError, TransientError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import DatasetVersion, Digest, Name, canonical_json, digest_of
from deepseek_ops.data.checkout import VerifyReport, selected, verify_tree, write_folder
from deepseek_ops.data.layout import commit_key, require_format
from deepseek_ops.data.parallel import in_parallel
from deepseek_ops.data.refs import RefEntry, RefLog, create_tag, read_tag
from deepseek_ops.data.snapshot import SplitOf, no_split, store_folder
from deepseek_ops.data.trees import DatasetDiff, Tree, diff

COMMIT_SCHEMA = "dataset-commit/1"
APPEND_TRIES = 50
MIN_PREFIX = 8
_NAME = TypeAdapter(Name)


@dataclass(eq=False)
class VersionNotFoundError(PermanentError):
    """No version, branch or tag has this name."""

    uri: str
    name: str

    def __str__(self) -> str:
        return f"{self.name!r} is no dataset, dataset@branch, tag or version in {self.uri}; `data log` shows versions."


@dataclass(eq=False)
class InvalidNameError(PermanentError):
    """A dataset, branch or tag name that is no plain name."""

    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} name {self.name!r} is not valid; use up to 100 letters, digits, '.', '_' and '-'."


@dataclass(eq=False)
class BranchMovedError(PermanentError):
    """The branch is not where the writer believed it to be."""

    branch: str
    expected: Digest
    actual: Digest

    def __str__(self) -> str:
        return f"{self.branch} is at {self.actual}, not {self.expected}; check it out, redo the change, commit again."


@dataclass(eq=False)
class BranchContendedError(TransientError):
    """Others won every place in the branch's log."""

    branch: str

    def __str__(self) -> str:
        return f"{self.branch}: {APPEND_TRIES} other writers were first, one after the other; commit again later."


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
        _checked("dataset", name)
        self._require_format()
        log = RefLog(self._store, name, branch)
        head = log.head()
        start = parent or (head.version if head else self._head_of_main(name))
        base = self._tree(start) if start else Tree.empty(self._store)
        tree = store_folder(self._store, folder, parent=base, split_of=split_of, workers=self._workers)
        body: dict[str, JsonValue] = {
            "schema": COMMIT_SCHEMA,
            "name": name,
            "tree": tree.digest,
            "message": message,
            "author": author,
            "num_files": tree.num_files,
            "num_bytes": tree.num_bytes,
            "splits": dict(splits or {}),
            "lineage": dict(lineage or {}),
        }
        return self._append(log, head, body, parent)

    def _append(
        self, log: RefLog, head: RefEntry | None, body: dict[str, JsonValue], parent: Digest | None
    ) -> DatasetVersion:
        for attempt in range(APPEND_TRIES):
            if head is not None and self._says_the_same(head.version, body):
                return self.load(head.version)
            if parent is not None and head is not None and head.version != parent:
                raise BranchMovedError(log.name, parent, head.version)
            parents = [head.version] if head else [parent] if parent else []
            data = canonical_json({**body, "parents": list(parents)})
            version = digest_of(data)
            self._store.put_blob(commit_key(version), data)
            if log.append(version, after=head) is not None:
                return _version_of(version, json.loads(data))
            time.sleep(random.uniform(0, 0.01 * min(attempt + 1, 10)))  # noqa: S311  (spreads writers)
            head = log.head()
        raise BranchContendedError(log.name)

    def _says_the_same(self, version: Digest, body: Mapping[str, JsonValue]) -> bool:
        there = self.describe(version)
        return all(there.get(key) == body[key] for key in ("tree", "lineage", "splits"))

    def _head_of_main(self, name: str) -> Digest | None:
        head = RefLog(self._store, name, "main").head()
        return head.version if head else None

    def resolve(self, name_or_id: str) -> Digest:
        """Return the version id of a tag, ``dataset`` (its main branch), ``dataset@branch``, id or unique id prefix.

        Raises VersionNotFoundError.
        """
        if _is_hex(name_or_id, 64):
            if self._store.head(commit_key(name_or_id)) is None:
                raise VersionNotFoundError(self._store.uri, name_or_id)
            return name_or_id
        found = self._by_name(name_or_id)
        if found is None and MIN_PREFIX <= len(name_or_id) < 64 and _is_hex(name_or_id, len(name_or_id)):
            keys = [info.key for info in self._store.list(commit_key(name_or_id), limit=2)]
            found = keys[0].rpartition("/")[2] if len(keys) == 1 else None
        if found is None:
            raise VersionNotFoundError(self._store.uri, name_or_id)
        return found

    def _by_name(self, name: str) -> Digest | None:
        dataset, _, branch = name.partition("@")
        if not _is_name(dataset):
            return None
        if not branch and (tagged := read_tag(self._store, name)) is not None:
            return tagged
        head = RefLog(self._store, dataset, branch or "main").head()
        return head.version if head else None

    def describe(self, version: str) -> dict[str, JsonValue]:
        """Return the commit record of a version. Raises VersionNotFoundError, IntegrityError."""
        try:
            data = self._store.get(commit_key(version))
        except ObjectNotFoundError:
            raise VersionNotFoundError(self._store.uri, version) from None
        if (actual := digest_of(data)) != version:
            raise IntegrityError(f"{self._store.uri}/{commit_key(version)}", version, actual)
        body: dict[str, JsonValue] = json.loads(data)
        return body

    def load(self, version: str) -> DatasetVersion:
        """Return the record of a version. Raises VersionNotFoundError, IntegrityError."""
        return _version_of(version, self.describe(version))

    def _tree(self, version: str) -> Tree:
        return Tree.load(self._store, str(self.describe(version)["tree"]))

    def checkout(self, version_id: str, target: Path, *, patterns: Sequence[str] = ()) -> None:
        """Write the version, or its files that match a glob, as a new folder: complete and verified, or not at all."""
        version = self.resolve(version_id)
        write_folder(self._store, selected(self._tree(version), patterns), target, workers=self._workers)

    def paths(self, version_id: str, *, patterns: Sequence[str] = ()) -> list[str]:
        """Return the paths of a version, or those that match a glob, sorted."""
        return sorted(file.entry.path for file in selected(self._tree(self.resolve(version_id)), patterns))

    def log(self, name: str, *, branch: str = "main", limit: int | None = None) -> list[LogEntry]:
        """Return the versions a branch has had, newest first.

        Raises VersionNotFoundError for a branch that does not exist, IntegrityError when its history was altered.
        """
        log = RefLog(self._store, _checked("dataset", name), branch)
        entries = in_parallel(self._log_entry, log.entries(limit=limit), self._workers)
        if not entries:
            raise VersionNotFoundError(self._store.uri, log.name)
        return entries

    def _log_entry(self, entry: RefEntry) -> LogEntry:
        body = self.describe(entry.version)
        version = _version_of(entry.version, body)
        message, author = str(body.get("message")), str(body.get("author"))
        return LogEntry(version.version, entry.at, message, author, version.num_files, version.num_bytes)

    def diff(self, old: str, new: str) -> DatasetDiff:
        """Return the paths that differ between two versions; parts they share are not read."""
        return diff(self._tree(self.resolve(old)), self._tree(self.resolve(new)))

    def tag(self, name: str, version: str) -> Digest:
        """Name a version for ever and return its id. Raises TagMovedError when the tag names another one."""
        self._require_format()
        digest = self.resolve(version)
        create_tag(self._store, _checked("tag", name), digest)
        return digest

    def verify(self, version: str) -> VerifyReport:
        """Read every byte of a version and return what is missing or damaged."""
        return verify_tree(self._store, self._tree(self.resolve(version)), workers=self._workers)


def _version_of(version: Digest, body: Mapping[str, JsonValue]) -> DatasetVersion:
    kept = {key: body.get(key) for key in ("name", "tree", "num_files", "num_bytes", "splits")}
    return DatasetVersion.load({"version": version, **kept})


def _checked(kind: str, name: str) -> str:
    if not _is_name(name):
        raise InvalidNameError(kind, name)
    return name


def _is_name(name: str) -> bool:
    try:
        _NAME.validate_python(name)
    except ValidationError:
        return False
    return True


def _is_hex(text: str, length: int) -> bool:
    return len(text) == length and not set(text) - set("0123456789abcdef")
