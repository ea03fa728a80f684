"""Names of versions: tags that never move, and branches as logs in which exactly one of many writers wins each place.

A branch entry is created under ``<inverted sequence>``, so that the newest sorts first and one listing of one key
reads the head. Each entry names the digest of the one before it: the log is its own tamper-evident history.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote, unquote

from pydantic import JsonValue

from deepseek_ops.core.errors import IntegrityError, ObjectExistsError, ObjectNotFoundError, PermanentError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import Digest, canonical_json, digest_of

LAST = (1 << 48) - 1
_DIGITS = 12


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
    version: Digest
    previous: str
    """Digest of the entry before; empty for the first."""
    at: str
    """ISO 8601, UTC: when the branch got there. Not part of any version's identity."""
    digest: Digest
    """Of this entry."""


class RefLog:
    """The log of one branch of one dataset."""

    def __init__(self, store: ObjectStore, dataset: str, branch: str) -> None:
        self._store = store
        self.name = f"{dataset}@{branch}"
        self._prefix = f"refs/heads/{dataset}/{quote(branch, safe='')}/"

    def head(self) -> RefEntry | None:
        """Return the newest entry, or None for a branch that does not exist."""
        return next(self.entries(limit=1), None)

    def entries(self, *, limit: int | None = None) -> Iterator[RefEntry]:
        """Yield entries, newest first. Raises IntegrityError when one does not continue the one before it."""
        later: RefEntry | None = None
        for info in self._store.list(self._prefix, limit=limit):
            entry = self._read(info.key)
            if later is not None and later.previous != entry.digest:
                raise IntegrityError(f"entry {entry.sequence} of {self.name}", later.previous, entry.digest)
            later = entry
            yield entry

    def append(self, version: Digest, *, after: RefEntry | None) -> RefEntry | None:
        """Make ``version`` the head if ``after`` still is; return the new entry, or None when somebody was first."""
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
        data = self._store.get(key)
        try:
            body = json.loads(data)
            sequence = LAST - int(key.rpartition("/")[2], 16)
            return RefEntry(sequence, body["version"], body["previous"], body["at"], digest_of(data))
        except (ValueError, KeyError, TypeError):
            raise IntegrityError(f"{self._store.uri}/{key}", "an entry of a branch", "something else") from None


def branches(store: ObjectStore, dataset: str) -> list[str]:
    """Return the branches of a dataset, sorted."""
    prefix = f"refs/heads/{dataset}/"
    return sorted({unquote(info.key.removeprefix(prefix).partition("/")[0]) for info in store.list(prefix)})


def create_tag(store: ObjectStore, tag: str, version: Digest) -> None:
    """Name a version for ever; naming it the same again changes nothing. Raises TagMovedError."""
    try:
        store.create(f"refs/tags/{tag}", canonical_json({"version": version}))
    except ObjectExistsError:
        existing = read_tag(store, tag)
        if existing != version:
            raise TagMovedError(tag, existing or "", version) from None


def read_tag(store: ObjectStore, tag: str) -> Digest | None:
    """Return the version a tag names, or None."""
    key = f"refs/tags/{tag}"
    try:
        return str(json.loads(store.get(key))["version"])
    except ObjectNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        raise IntegrityError(f"{store.uri}/{key}", "a tag", "something else") from None
