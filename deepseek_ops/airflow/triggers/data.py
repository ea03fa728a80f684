"""A trigger that fires for data that has arrived completely, at the cost of listing what is new."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import TriggerEvent
from pydantic import Field

from deepseek_ops.airflow.hooks import StoreHook
from deepseek_ops.airflow.triggers.watching import Memory, OnStart, WatchTrigger, pause_after
from deepseek_ops.core.errors import DeepSeekOpsError
from deepseek_ops.core.records import Digest, Record

if TYPE_CHECKING:
    from deepseek_ops.core.ports import ObjectStore

log = logging.getLogger(__name__)

MARKERS = ("_READY", "_SUCCESS", "manifest.json")
"""Object names that say "this upload is complete"."""
NOTHING = hashlib.sha256().hexdigest()


class DataArrival(Record):
    """What lies below a prefix once an upload is complete. Equal content, equal digest."""

    uri: str = Field(description="The store, without credentials.")
    prefix: str
    digest: Digest = Field(description="SHA-256 over the lines 'key size' of every object in key order.")
    num_objects: int = Field(ge=0)
    num_bytes: int = Field(ge=0)


@dataclass(frozen=True, slots=True)
class Listing:
    """A listing, summed up; it takes no memory however many objects there are."""

    digest: str
    num_objects: int
    num_bytes: int
    last_key: str
    marked: bool


def survey(store: ObjectStore, prefix: str, *, after: str = "", markers: Sequence[str] = MARKERS) -> Listing:
    """Return the summed-up listing of the objects below ``prefix`` whose keys come after ``after``. Blocking."""
    digest, count, size, last, marked = hashlib.sha256(), 0, 0, after, False
    for item in store.list(prefix, start_after=after):
        digest.update(f"{item.key}\x00{item.size}\n".encode())
        count, size, last = count + 1, size + item.size, item.key
        marked = marked or item.key.rpartition("/")[2] in markers
    return Listing(digest.hexdigest(), count, size, last, marked)


class ManifestTrigger(WatchTrigger):
    """Fire when an upload below a prefix is complete, with a :class:`DataArrival` as JSON.

    An upload is complete when a marker object arrives with it, or when nothing new came for ``settle`` seconds. A look
    lists only keys after the last known one, so new data should sort last (dates, numbers); what was inserted before,
    overwritten or deleted is found by the full look every ``rescan`` seconds. Equal content fires once.

    :param store_conn_id: connection of the store.
    :param asset_name: asset whose state store remembers what was announced; empty in a deferred task.
    :param prefix: key prefix within the connection's store.
    :param settle: seconds without new objects.
    :param markers: names of objects that complete an upload at once.
    :param poll_interval: seconds between two looks.
    :param rescan: seconds between two full looks.
    :param after: digest that counts as announced, where there is no memory.
    :param on_start: what a first start does with data that exists: ``skip`` or ``announce`` it.
    """

    def __init__(
        self,
        *,
        store_conn_id: str = StoreHook.default_conn_name,
        asset_name: str = "",
        prefix: str = "",
        settle: float = 300.0,
        markers: Sequence[str] = MARKERS,
        poll_interval: float = 60.0,
        rescan: float = 3600.0,
        after: str | None = None,
        on_start: OnStart = "skip",
    ) -> None:
        super().__init__(asset_name=asset_name, poll_interval=poll_interval, on_start=on_start)
        self.store_conn_id = store_conn_id
        self.prefix = prefix
        self.settle = settle
        self.markers = list(markers)
        self.rescan = rescan
        self.after = after

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (
            "deepseek_ops.airflow.triggers.data.ManifestTrigger",
            {
                "store_conn_id": self.store_conn_id,
                "asset_name": self.asset_name,
                "prefix": self.prefix,
                "settle": self.settle,
                "markers": self.markers,
                "poll_interval": self.poll_interval,
                "rescan": self.rescan,
                "after": self.after,
                "on_start": self.on_start,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        watch, failures = _Watch(self), 0
        while True:
            try:
                arrival = await watch.look()
            except Exception as error:  # noqa: BLE001  (a trigger that raises is started again without a pause)
                failures += 1
                watch.store = None
                wait = pause_after(failures, self.poll_interval)
                level = logging.WARNING if isinstance(error, DeepSeekOpsError) else logging.ERROR
                log.log(level, "look %d below %r failed, next in %.0f s: %s", failures, self.prefix, wait, error)
                await asyncio.sleep(wait)
                continue
            failures = 0
            if arrival is not None:
                yield TriggerEvent(arrival.dump())
                await watch.announced(arrival)
            await asyncio.sleep(self.poll_interval)


class _Watch:
    """One run of the trigger: what is known, and since when nothing new came."""

    def __init__(self, trigger: ManifestTrigger) -> None:
        self._trigger = trigger
        self.store: ObjectStore | None = None
        self._memory: Memory | None = None
        self._known: dict[str, str] | None = None  # digest, last_key
        self._pending: tuple[str, float] | None = None  # digest of the news, when it was first seen
        self._full_look = time.monotonic()

    async def look(self) -> DataArrival | None:
        """Return an arrival that is complete and was not announced."""
        if self.store is None:
            self.store = await asyncio.to_thread(_open, self._trigger.store_conn_id)
        if self._known is None:
            await self._begin(self.store)
        if self._known is None or not await self._complete(self.store, self._known):
            return None
        # Everything below the prefix is what a consumer will read: that is what gets announced.
        full = await self._survey(self.store)
        self._pending, self._full_look = None, time.monotonic()
        if full.digest == self._known["digest"]:
            self._known["last_key"] = full.last_key
            return None
        self._known = {"digest": full.digest, "last_key": full.last_key}
        return DataArrival(
            uri=self.store.uri,
            prefix=self._trigger.prefix,
            digest=full.digest,
            num_objects=full.num_objects,
            num_bytes=full.num_bytes,
        )

    async def announced(self, arrival: DataArrival) -> None:
        """Remember an arrival that was handed over."""
        log.info("announced %d objects below %r, digest %s", arrival.num_objects, arrival.prefix, arrival.digest[:12])
        if self._memory is not None and self._known is not None:
            await asyncio.sleep(self._trigger.handover_seconds)
            await self._memory.save_or_log(self._known)

    async def _begin(self, store: ObjectStore) -> None:
        trigger = self._trigger
        self._memory = trigger.memory([trigger.store_conn_id, store.uri, trigger.prefix])
        known = await self._memory.load() if self._memory is not None else None
        if known:
            self._full_look = float("-inf")  # what changed while nobody watched may lie anywhere
        elif trigger.after is not None:
            known = {"digest": trigger.after, "last_key": ""}
        elif trigger.on_start == "announce":
            known = {"digest": NOTHING, "last_key": ""}
        else:
            there = await self._survey(store)
            known = {"digest": there.digest, "last_key": there.last_key}
        if self._memory is not None:
            await self._memory.save(known)
        self._known = known

    async def _complete(self, store: ObjectStore, known: dict[str, str]) -> bool:
        """Return whether there is news that is complete; the quiet time counts from when the news last changed."""
        now = time.monotonic()
        full = now - self._full_look >= self._trigger.rescan or not known["last_key"]
        news = await self._survey(store, after="" if full else known["last_key"])
        if news.digest == (known["digest"] if full else NOTHING):
            self._full_look = now if full else self._full_look
            self._pending = None
            return False
        if self._pending is None or self._pending[0] != news.digest:
            self._pending = (news.digest, now)
        # In a full look, a marker may be that of an upload that was announced long ago.
        marked = news.marked and (not full or known["digest"] == NOTHING)
        return marked or now - self._pending[1] >= self._trigger.settle

    async def _survey(self, store: ObjectStore, after: str = "") -> Listing:
        trigger = self._trigger
        return await asyncio.to_thread(survey, store, trigger.prefix, after=after, markers=trigger.markers)


def _open(store_conn_id: str) -> ObjectStore:
    return StoreHook(store_conn_id).store
