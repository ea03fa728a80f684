"""The store's clock, and objects that say "I am alive" by it.

The clocks of two machines differ, and a stopped process does not see time pass. The only clock that writers and
collectors share is the store's: it stamps every object it is given (``ObjectInfo.modified``). So a process that must be
seen to be alive stores one small object again and again, and who judges it compares that stamp with the stamp of an
object stored just now.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from deepseek_ops.core.errors import PermanentError, StoreUnavailableError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import canonical_json

SLACK = 0.1
"""Share of a lease that both sides leave out: stamps are whole seconds on some stores, and take time to be seen."""


@dataclass(eq=False)
class UnclockedStoreError(PermanentError):
    """The store does not say when an object was stored."""

    uri: str

    def __str__(self) -> str:
        return (
            f"{self.uri} does not say when an object was stored, so nothing in it can be too old; nothing is deleted."
        )


def store_time(store: ObjectStore) -> float:
    """Return what time it is by the store's clock, in Unix seconds: never later than when this returns.

    Raises UnclockedStoreError.
    """
    key = f"probe/{secrets.token_hex(16)}"
    store.create(key, b"what time is it")
    try:
        info = store.head(key)
    finally:
        store.delete([key])
    if info is None or not info.modified:
        raise UnclockedStoreError(store.uri)
    return info.modified


def local_time() -> float:
    """Return seconds on this machine that also pass while it sleeps; only differences mean something."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Heartbeat:
    """One object, kept fresh by a thread, and whether it ever was not fresh for too long.

    Whoever judges it holds the process for dead when the stamp is older than ``seconds`` (and a little). ``covers``
    tells the process itself whether anybody can have thought so before a moment.
    """

    def __init__(self, store: ObjectStore, key: str, body: Mapping[str, JsonValue], *, seconds: float) -> None:
        self.key = key
        self.seconds = seconds
        self._store = store
        self._data = canonical_json(dict(body))
        self._last = 0.0
        self._confirmed = 0.0
        self._lapsed = False
        self._unclocked = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"heartbeat {key}", daemon=True)

    def start(self) -> None:
        """Create the object and keep it fresh. Raises ObjectExistsError."""
        begun = local_time()
        self._store.create(self.key, self._data)
        info = self._store.head(self.key)
        # Where the store stamps nothing, nothing is ever old: no collection deletes there, and no lease lapses.
        self._unclocked = info is not None and not info.modified
        self._last, self._confirmed = info.modified if info else 0.0, begun
        self._thread.start()

    def end(self) -> None:
        """Stop keeping it fresh; the object stays."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def beat(self) -> None:
        """Store the object again."""
        begun = local_time()
        self._store.put_blob(self.key, self._data)
        info = self._store.head(self.key)
        if info is None:
            self._lapsed = True
            return
        # The new stamp may have been given before anybody could see it: by no more than the call took.
        self._lapsed |= not self.covers(info.modified + (local_time() - begun))
        self._last, self._confirmed = max(self._last, info.modified), begun

    def covers(self, moment: float) -> bool:
        """Return whether nobody can have held us for dead at ``moment`` of the store's clock, or before."""
        in_time = moment <= self._last + self.seconds * (1 - SLACK)
        return self._unclocked or (in_time and not self._lapsed)

    @property
    def fresh(self) -> bool:
        """Whether, by this machine's clock, the object is younger than ``seconds``."""
        return not self._lapsed and local_time() - self._confirmed < self.seconds * (1 - SLACK)

    def _run(self) -> None:
        while not self._ended.wait(self.seconds / 5):
            try:
                self.beat()
            except StoreUnavailableError:
                continue  # the next one may get through; if none does in time, the lease has lapsed
