"""``champion``, ``challenger`` and other names for versions, as logs that only grow.

Every entry is a create-only object that names its predecessor's digest: the log is the history, "what served at T" is
a read, and of two that move an alias at once the store lets one through and the other is told.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from pydantic import Field

from deepseek_ops.core.errors import IntegrityError, InvalidRecordError, ObjectExistsError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import Digest, Name, Record, SemVer, canonical_json, digest_of
from deepseek_ops.registry.errors import AliasMovedError
from deepseek_ops.registry.layout import alias_key, alias_prefix

Clock = Callable[[], datetime]


class AliasEntry(Record):
    """One move of an alias. An entry of a log, so it knows its time."""

    name: Name = Field(description="The model.")
    alias: Name
    sequence: int = Field(ge=1, description="1 is the first move.")
    version: SemVer
    bundle: Digest = Field(description="Digest of the version's bundle.json.")
    previous: str = Field(default="", description="Digest of the entry before; empty for the first.")
    replaces: str = Field(default="", description="Version it named before; empty for the first.")
    at: str = Field(description="ISO 8601, UTC; never before the entry before.")
    actor: str
    reason: str = ""
    operation: str = Field(default="", description="Id of what moved it: the same operation moves it once.")


def utc_now() -> datetime:
    return datetime.now(UTC)


def head(store: ObjectStore, name: str, alias: str) -> AliasEntry | None:
    """Return the newest entry, or None when the alias was never set."""
    newest = next(store.list(alias_prefix(name, alias), limit=1), None)
    return None if newest is None else _read(store, newest.key, name, alias)


def history(store: ObjectStore, name: str, alias: str) -> Iterator[AliasEntry]:
    """Yield every move, newest first, each checked against the next one's ``previous``.

    Raises IntegrityError at the entry that was changed, or where one is missing.
    """
    newer: AliasEntry | None = None
    for info in store.list(alias_prefix(name, alias)):
        entry = _read(store, info.key, name, alias)
        if newer is not None and (entry.sequence, entry.fingerprint) != (newer.sequence - 1, newer.previous):
            raise IntegrityError(f"{store.uri}/{info.key}", newer.previous or "none", entry.fingerprint)
        yield entry
        newer = entry
    if newer is not None and (newer.sequence, newer.previous) != (1, ""):
        missing = alias_key(name, alias, newer.sequence - 1)
        raise IntegrityError(f"{store.uri}/{missing}", newer.previous or "none", "missing")


def alias_at(store: ObjectStore, name: str, alias: str, moment: datetime) -> AliasEntry | None:
    """Return the entry that counted at ``moment`` (with a time zone), or None when the alias was not set yet."""
    text = _iso(moment)
    return next((entry for entry in history(store, name, alias) if entry.at <= text), None)


def move(
    store: ObjectStore,
    wanted: AliasEntry,
    *,
    expected: str | None = None,
    clock: Clock = utc_now,
) -> tuple[AliasEntry, bool]:
    """Point the alias at ``wanted.version``; return the entry that counts and whether this call wrote it.

    ``sequence``, ``previous``, ``replaces`` and ``at`` of ``wanted`` are filled in here. An alias that names the
    version already, and an operation that is in the log already, change nothing: a retried task does not move an
    alias twice, even when somebody rolled it back meanwhile.

    Args:
        expected: Version that the alias must name now (empty: it must not be set); None moves it from anywhere.

    Raises:
        AliasMovedError: It names another version than expected, or somebody moved it at the same time.
    """
    current = head(store, wanted.name, wanted.alias)
    label = f"{wanted.name}/{wanted.alias}"
    if current is not None and current.version == wanted.version:
        return current, False
    if wanted.operation and (done := _done(store, wanted)):
        return done, False
    if expected is not None and expected != (current.version if current else ""):
        raise AliasMovedError(label, wanted.version, expected, current.version if current else "")
    entry = wanted.evolve(
        sequence=current.sequence + 1 if current else 1,
        previous=current.fingerprint if current else "",
        replaces=current.version if current else "",
        # A machine whose clock is behind must not make the log run backwards: reads by time would miss its entry.
        at=max(_iso(clock()), current.at if current else ""),
    )
    key = alias_key(entry.name, entry.alias, entry.sequence)
    try:
        store.create(key, canonical_json(entry.dump()))
    except ObjectExistsError as error:
        found = _read(store, key, entry.name, entry.alias)
        if found == entry:  # our own write, whose answer was lost on the way
            return entry, True
        raise AliasMovedError(label, entry.version, current.version if current else "", found.version) from error
    return entry, True


def _done(store: ObjectStore, wanted: AliasEntry) -> AliasEntry | None:
    moves = history(store, wanted.name, wanted.alias)
    return next((entry for entry in moves if entry.operation == wanted.operation), None)


def _read(store: ObjectStore, key: str, name: str, alias: str) -> AliasEntry:
    data, where = store.get(key), f"{store.uri}/{key}"
    try:
        entry = AliasEntry.load(json.loads(data))
    except (ValueError, TypeError, InvalidRecordError) as error:
        raise IntegrityError(where, "that of an alias entry", f"{digest_of(data)} ({error})") from error
    if entry.fingerprint != digest_of(data) or key != alias_key(name, alias, entry.sequence):
        raise IntegrityError(where, entry.fingerprint, digest_of(data))
    return entry


def _iso(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
