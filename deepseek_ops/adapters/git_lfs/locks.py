"""File locks in the object store, with create-only puts and nothing else.

Each path of a repository has a log: entry ``n`` is a lock, or an empty object where the lock was given back. A change
creates entry ``n + 1``; of many writers one wins and the others read again. Numbers count down in the key, so the
newest entry sorts first, and never start again. Only the last entries are kept. A listing may be a little old, and may
miss what was removed while it was made: whoever acts on it collides with an entry that is still kept. Whoever stood
still for longer could create an entry below the newest one: after creating, one more look tells whether it counts.
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

from pydantic import JsonValue

from deepseek_ops.adapters.git_lfs.problems import LfsRequestError
from deepseek_ops.core.errors import ObjectExistsError, ObjectNotFoundError, StoreUnavailableError
from deepseek_ops.core.ports import ObjectInfo, ObjectStore
from deepseek_ops.core.records import Record, canonical_json

LOCKS = "lfs/locks/"
MAX_PATH_BYTES = 4096
MAX_PAGE = 1000
KEPT = 8
"""Entries of a file's log: so many changes would have to happen in the middle of one listing to deceive its reader."""
_LAST = 10**8 - 1
_TRIES = 50
_ID = re.compile(r"([0-9a-f]{32})-(\d{1,8})")


class Lock(Record):
    """A file that one person works on."""

    id: str
    path: str
    owner: str
    locked_at: str

    def public(self) -> dict[str, JsonValue]:
        """Return the lock as the API shows it."""
        return {"id": self.id, "path": self.path, "locked_at": self.locked_at, "owner": {"name": self.owner}}


@dataclass(frozen=True, slots=True)
class LockPage:
    """Some locks, in a stable order, and where to go on."""

    locks: tuple[Lock, ...]
    next_cursor: str


class Locks:
    """The locks of all repositories of a store. Safe for use by many threads and many servers."""

    def __init__(self, store: ObjectStore, *, now: Callable[[], float] = time.time) -> None:
        self._store = store
        self._now = now

    def create(self, repository: str, path: str, owner: str) -> Lock:
        """Return the new lock. Raises LfsRequestError: 409 with the lock that is there, 422 for a path."""
        _checked_path(path)
        name = hashlib.sha256(path.encode()).hexdigest()[:32]
        for attempt in range(_TRIES):
            number, held = self._newest(repository, name)
            if held is not None:
                message = f"{path} is locked by {held.owner} already"
                raise LfsRequestError(409, message, {"lock": held.public()})
            stamp = datetime.fromtimestamp(int(self._now()), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            lock = Lock(id=f"{name}-{number + 1}", path=path, owner=owner, locked_at=stamp)
            with suppress(ObjectExistsError):
                if self._append(repository, name, number + 1, canonical_json(lock.dump())):
                    return lock
            _pause(attempt)
        raise StoreUnavailableError(self._store.uri, f"the lock of {path} changes too fast")

    def release(self, repository: str, lock_id: str, by: str, *, force: bool) -> Lock:
        """Return the lock that was given back. Raises LfsRequestError: 404, or 403 for another's without ``force``."""
        match = _ID.fullmatch(lock_id)
        if match is None:
            raise LfsRequestError(404, "there is no such lock")
        name, number = match[1], int(match[2])
        newest, held = self._newest(repository, name)
        if held is None or newest != number:
            raise LfsRequestError(404, "there is no such lock")
        if held.owner != by and not force:
            raise LfsRequestError(
                403, f"{held.path} is locked by {held.owner}; unlock it with --force if that is meant"
            )
        try:
            self._append(repository, name, number + 1, b"")  # if it is not the newest, the next lock was quick
        except ObjectExistsError:
            raise LfsRequestError(404, "there is no such lock any more") from None
        return held

    def find(self, repository: str, *, path: str = "", lock_id: str = "", cursor: str = "", limit: int = 0) -> LockPage:
        """Return the locks that match, from ``cursor`` on. Raises LfsRequestError (422) for a foreign cursor."""
        limit = min(limit, MAX_PAGE) if limit > 0 else MAX_PAGE
        if cursor and not re.fullmatch(r"[0-9a-f]{32}", cursor):
            raise LfsRequestError(422, "cursor is not one of this server")
        wanted = self._wanted(path, lock_id)
        if wanted is None:
            found = self._held(repository, cursor, limit + 1)
        else:
            held = self._newest(repository, wanted)[1]
            match = held is not None and (not lock_id or held.id == lock_id) and (not path or held.path == path)
            found = [held] if held is not None and match else []
        more = len(found) > limit
        page = tuple(found[:limit])
        return LockPage(page, page[-1].id.partition("-")[0] if more else "")

    @staticmethod
    def _wanted(path: str, lock_id: str) -> str | None:
        """Return the one log that can match, empty for none, or None where all can."""
        if lock_id:
            match = _ID.fullmatch(lock_id)
            return match[1] if match else "0"
        return hashlib.sha256(path.encode("utf-8", "replace")).hexdigest()[:32] if path else None

    def _held(self, repository: str, cursor: str, count: int) -> list[Lock]:
        """Return up to ``count`` locks after ``cursor``: bodies are read for those that are held only."""
        found: list[Lock] = []
        heads = self._heads(repository, cursor)
        with ThreadPoolExecutor(8, thread_name_prefix="locks") as pool:
            while len(found) < count:
                batch = list(islice(heads, count - len(found)))
                if not batch:
                    break
                read = pool.map(lambda info: self._current(repository, info), batch)
                found += [lock for lock in read if lock is not None]
        return found

    def _heads(self, repository: str, cursor: str) -> Iterator[ObjectInfo]:
        prefix, last = _folder(repository), ""
        start_after = f"{prefix}{cursor}/~" if cursor else ""
        for info in self._store.list(prefix, start_after=start_after):
            name = info.key[len(prefix) :].partition("/")[0]
            if name != last and info.size:
                yield info
            last = name

    def _current(self, repository: str, info: ObjectInfo) -> Lock | None:
        try:
            return _read(self._store.get(info.key))
        except ObjectNotFoundError:  # superseded since it was listed
            return self._newest(repository, info.key.rsplit("/", 2)[1])[1]

    def _newest(self, repository: str, name: str) -> tuple[int, Lock | None]:
        """Return the number of the newest entry (0 for none) and its lock if it is held."""
        prefix = f"{_folder(repository)}{name}/"
        for attempt in range(_TRIES):
            info = next(self._store.list(prefix, limit=1), None)
            if info is None:
                return 0, None
            number = _LAST - int(info.key.rpartition("/")[2])
            if not info.size:
                return number, None
            try:
                return number, _read(self._store.get(info.key))
            except ObjectNotFoundError:
                _pause(attempt)  # a newer one has taken its place: look again
        raise StoreUnavailableError(self._store.uri, "a lock changes faster than it can be read")

    def _append(self, repository: str, name: str, number: int, body: bytes) -> bool:
        """Create an entry and return whether it is the newest; old ones are removed.

        Raises ObjectExistsError when another writer was first.
        """
        prefix = f"{_folder(repository)}{name}/"
        key = f"{prefix}{_LAST - number:08d}"
        self._store.create(key, body)
        keys = [info.key for info in self._store.list(prefix)]
        if keys[:1] != [key]:
            self._store.delete([key])
            return False
        self._store.delete(keys[KEPT:])
        return True


def _folder(repository: str) -> str:
    return f"{LOCKS}{repository}/-/"  # no repository has a segment "-", so one's locks are never below another's


def _read(body: bytes) -> Lock:
    return Lock.load(json.loads(body))


def _checked_path(path: str) -> None:
    segments = path.split("/")
    control = any(ord(char) < 0x20 or ord(char) == 0x7F for char in path)
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        size = MAX_PATH_BYTES + 1
    if not path or control or size > MAX_PATH_BYTES or any(segment in ("", ".", "..") for segment in segments):
        raise LfsRequestError(422, "path must be relative to the repository, without '.', '..' and control characters")


def _pause(attempt: int) -> None:
    time.sleep(min(0.01 * 1.5**attempt, 0.5))
