"""Names of versions: tags that never move, and branches as logs in which exactly one of many writers wins each place.

A branch entry is created under ``<inverted sequence>``, so that the newest sorts first and one listing of one key
reads the head. Each entry names the digest of the one before it: the log is its own tamper-evident history. Deleting a
branch adds an entry that names no version: the log stays, the branch can be made again, and whoever races with the
deletion loses or wins a place as in any other race.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal
from urllib.parse import quote, unquote

from pydantic import JsonValue

from deepseek_ops.core.errors import IntegrityError, ObjectExistsError, ObjectNotFoundError, PermanentError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import Digest, canonical_json, digest_of

HEADS = "refs/heads/"
TAGS = "refs/tags/"
LAST = (1 << 48) - 1
MAX_BRANCH_NAME = 200
"""As it is quoted: one segment of a key, hence of a path."""
_DIGITS = 12
_BRANCH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*)*")


@dataclass(eq=False)
class TagMovedError(PermanentError):
    """A tag exists and names another version."""

    tag: str
    existing: Digest
    wanted: Digest

    def __str__(self) -> str:
        return f"tag {self.tag} is {self.existing} and cannot become {self.wanted}; tags never move, choose a new name."


@dataclass(frozen=True, slots=True)
class RefEntry:
    """One place in a branch's log."""

    sequence: int
    version: Digest | Literal[""]
    """Empty for an entry that deletes the branch."""
    previous: str
    """Digest of the entry before; empty for the first."""
    at: str
    """ISO 8601, UTC: when the branch got there. Not part of any version's identity."""
    digest: Digest
    """Of this entry."""

    @property
    def deleted(self) -> bool:
        """Whether this entry ended the branch."""
        return not self.version


class RefLog:
    """The log of one branch of one dataset."""

    def __init__(self, store: ObjectStore, dataset: str, branch: str) -> None:
        self._store = store
        self.name = f"{dataset}@{branch}"
        self._prefix = f"{HEADS}{dataset}/{quote(branch, safe='')}/"

    def head(self) -> RefEntry | None:
        """Return the newest entry, or None for a branch that does not exist or was deleted."""
        last = self.last()
        return None if last is None or last.deleted else last

    def last(self) -> RefEntry | None:
        """Return the newest entry, also one that deleted the branch: what the next entry has to follow."""
        return next(self.all_entries(limit=1), None)

    def entries(self, *, limit: int | None = None) -> Iterator[RefEntry]:
        """Yield the entries since the branch was (last) made, newest first; none for one that was deleted.

        Raises IntegrityError when one does not continue the one before it.
        """
        for entry in self.all_entries(limit=limit):
            if entry.deleted:
                return
            yield entry

    def all_entries(self, *, limit: int | None = None) -> Iterator[RefEntry]:
        """Yield every entry, deletions too, newest first. Raises IntegrityError as ``entries`` does."""
        later: RefEntry | None = None
        for info in self._store.list(self._prefix, limit=limit):
            entry = self._read(info.key)
            if later is not None and later.previous != entry.digest:
                raise IntegrityError(f"entry {entry.sequence} of {self.name}", later.previous, entry.digest)
            later = entry
            yield entry

    def append(self, version: Digest | Literal[""], *, after: RefEntry | None) -> RefEntry | None:
        """Make ``version`` the head if ``after`` is still the last entry, or delete the branch with an empty one.

        Returns the new entry, or None when somebody was first.
        """
        sequence = 0 if after is None else after.sequence + 1
        key = self._key(sequence)
        body: dict[str, JsonValue] = {
            "version": version,
            "previous": "" if after is None else after.digest,
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "writer": secrets.token_hex(16),
        }
        data = canonical_json(body)
        try:
            self._store.create(key, data)
        except ObjectExistsError:
            # The answer to a create that succeeded can be lost and the request sent again: the place may be ours.
            if self._store.get(key) != data:
                return None
        return self._read(key)

    def _key(self, sequence: int) -> str:
        return f"{self._prefix}{LAST - sequence:0{_DIGITS}x}"

    def _read(self, key: str) -> RefEntry:
        return _read_entry(self._store, key)


def _read_entry(store: ObjectStore, key: str) -> RefEntry:
    data = store.get(key)
    try:
        body = json.loads(data)
        sequence = LAST - int(key.rpartition("/")[2], 16)
        return RefEntry(sequence, body["version"], body["previous"], body["at"], digest_of(data))
    except (ValueError, KeyError, TypeError):
        raise IntegrityError(f"{store.uri}/{key}", "an entry of a branch", "something else") from None


def is_branch_name(name: str) -> bool:
    """Return whether this can name a branch: what Git takes too, without the characters that mean something to us."""
    return _BRANCH.fullmatch(name) is not None and ".." not in name and len(quote(name, safe="")) <= MAX_BRANCH_NAME


def branch_heads(store: ObjectStore, dataset: str) -> dict[str, RefEntry]:
    """Return the newest entry of each branch of a dataset, sorted by name; deleted branches are left out.

    One listing of one key and one read for each branch, however long its log is.
    """
    heads = {unquote(name): key for name, key in _firsts(store, f"{HEADS}{dataset}/")}
    entries = {name: _read_entry(store, key) for name, key in sorted(heads.items())}
    return {name: entry for name, entry in entries.items() if not entry.deleted}


def branches(store: ObjectStore, dataset: str) -> list[str]:
    """Return the branches of a dataset, sorted."""
    return list(branch_heads(store, dataset))


def datasets(store: ObjectStore) -> list[str]:
    """Return the names of all datasets of a store that have, or had, a branch, sorted."""
    return sorted(name for name, _ in _firsts(store, HEADS))


def _firsts(store: ObjectStore, prefix: str) -> Iterator[tuple[str, str]]:
    """Yield each folder below the prefix with its first key, jumping over the others."""
    after = ""
    while info := next(iter(store.list(prefix, start_after=after, limit=1)), None):
        name = info.key.removeprefix(prefix).partition("/")[0]
        yield name, info.key
        after = f"{prefix}{name}/~"  # sorts behind every sequence number and every branch


def create_tag(store: ObjectStore, tag: str, version: Digest) -> None:
    """Name a version for ever; naming it the same again changes nothing. Raises TagMovedError."""
    try:
        store.create(f"{TAGS}{tag}", canonical_json({"version": version}))
    except ObjectExistsError:
        existing = read_tag(store, tag)
        if existing != version:
            raise TagMovedError(tag, existing or "", version) from None


def read_tag(store: ObjectStore, tag: str) -> Digest | None:
    """Return the version a tag names, or None."""
    key = f"{TAGS}{tag}"
    try:
        return str(json.loads(store.get(key))["version"])
    except ObjectNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise IntegrityError(f"{store.uri}/{key}", "a tag", "something else") from None


def all_tags(store: ObjectStore) -> dict[str, Digest]:
    """Return tag -> version, sorted by name."""
    names = [info.key.removeprefix(TAGS) for info in store.list(TAGS)]
    versions = {name: read_tag(store, name) for name in names}
    return {name: version for name, version in sorted(versions.items()) if version is not None}
