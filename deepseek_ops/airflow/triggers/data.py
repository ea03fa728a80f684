"""A trigger that fires for data that has arrived completely, at the cost of listing what is new."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from airflow.triggers.base import TriggerEvent

from deepseek_ops.airflow.hooks import StoreHook
from deepseek_ops.airflow.triggers.folder_watch import FolderWatch
from deepseek_ops.airflow.triggers.queue import Bell
from deepseek_ops.airflow.triggers.uploads import MARKERS, NOTHING, DataArrival, Listing, fulfilled, survey
from deepseek_ops.airflow.triggers.watching import Memory, OnStart, WatchTrigger, pause_after
from deepseek_ops.core.errors import DeepSeekOpsError

if TYPE_CHECKING:
    from deepseek_ops.core.ports import ObjectStore

__all__ = ["MARKERS", "NOTHING", "DataArrival", "Listing", "ManifestTrigger", "survey"]

log = logging.getLogger(__name__)

SHORTEST_PAUSE = 0.1


class Watch(Protocol):
    """One run of the trigger."""

    store: ObjectStore | None

    @property
    def waits(self) -> bool:
        """Whether something has arrived that is not complete yet."""

    async def look(self) -> list[DataArrival]:
        """Return what is complete and was not announced."""

    async def announced(self, arrivals: list[DataArrival]) -> None:
        """Remember what was handed over."""

    def hint(self, keys: Sequence[str]) -> None:
        """Let the next look see these keys, wherever they sort."""


class ManifestTrigger(WatchTrigger):
    """Fire when an upload below a prefix is complete, with a :class:`DataArrival` as JSON.

    An upload is complete when a marker object arrives with it, when everything is there that its ``manifest.json``
    lists, or when nothing new came for ``settle`` seconds. A look lists only keys after the last known one, so new data
    should sort last (dates, numbers); what was inserted before, overwritten or deleted is found by the full look every
    ``rescan`` seconds. Equal content fires once.

    With ``depth`` each folder so many levels below the prefix is an upload of its own, with an event of its own: ten
    that arrive in one second give ten events, each when *it* is complete. Objects above these folders are no upload.

    With ``queue`` S3's own notifications wake it at once. They only wake it: the listing says what is there, so an
    event that is late, doubled, lost or forged changes nothing, and without the queue it polls on.

    :param store_conn_id: connection of the store.
    :param asset_name: asset whose state store remembers what was announced; empty in a deferred task.
    :param prefix: key prefix within the connection's store.
    :param settle: seconds without new objects.
    :param markers: names of objects that complete an upload at once.
    :param poll_interval: seconds between two looks.
    :param rescan: seconds between two full looks.
    :param after: digest that counts as announced, where there is no memory.
    :param on_start: what a first start does with data that exists: ``skip`` or ``announce`` it.
    :param depth: folder levels below the prefix that make one upload; 0: all below the prefix is one.
    :param queue: URL of an SQS queue that gets the bucket's notifications (directly, by SNS or EventBridge).
    :param queue_conn_id: AWS connection of the queue.
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
        depth: int = 0,
        queue: str = "",
        queue_conn_id: str = "aws_default",
    ) -> None:
        super().__init__(asset_name=asset_name, poll_interval=poll_interval, on_start=on_start)
        self.store_conn_id = store_conn_id
        self.prefix = prefix
        self.settle = settle
        self.markers = list(markers)
        self.rescan = rescan
        self.after = after
        self.depth = depth
        self.queue = queue
        self.queue_conn_id = queue_conn_id

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
                "depth": self.depth,
                "queue": self.queue,
                "queue_conn_id": self.queue_conn_id,
            },
        )

    def open_store(self) -> ObjectStore:
        """Return the store. Blocking."""
        return StoreHook(self.store_conn_id).store

    async def run(self) -> AsyncIterator[TriggerEvent]:
        watch: Watch = FolderWatch(self) if self.depth else _Watch(self)
        bell = Bell(self.queue, self.queue_conn_id, self.prefix)
        failures = 0
        while True:
            try:
                arrivals = await watch.look()
            except Exception as error:  # noqa: BLE001  (a trigger that raises is started again without a pause)
                failures += 1
                watch.store = None
                wait = pause_after(failures, self.poll_interval)
                level = logging.WARNING if isinstance(error, DeepSeekOpsError) else logging.ERROR
                log.log(level, "look %d below %r failed, next in %.0f s: %s", failures, self.prefix, wait, error)
                await asyncio.sleep(wait)
                continue
            failures = 0
            for arrival in arrivals:
                yield TriggerEvent(arrival.dump())
            if arrivals:
                await watch.announced(arrivals)
            await bell.heard()
            # What has arrived is looked at again when its quiet time may be over, however seldom polls are.
            pause = min(self.poll_interval, max(self.settle, SHORTEST_PAUSE)) if watch.waits else self.poll_interval
            watch.hint(await bell.wait(pause, watch.store.uri if watch.store is not None else ""))


class _Watch:
    """One run of the trigger: what is known, and since when nothing new came."""

    def __init__(self, trigger: ManifestTrigger) -> None:
        self._trigger = trigger
        self.store: ObjectStore | None = None
        self._memory: Memory | None = None
        self._known: dict[str, str] | None = None  # digest, last_key
        self._pending: tuple[str, float] | None = None  # digest of the news, when it was first seen
        self._full_look = time.monotonic()

    async def look(self) -> list[DataArrival]:
        """Return an arrival that is complete and was not announced, if there is one."""
        if self.store is None:
            self.store = await asyncio.to_thread(self._trigger.open_store)
        if self._known is None:
            await self._begin(self.store)
        if self._known is None or not await self._complete(self.store, self._known):
            return []
        # Everything below the prefix is what a consumer will read: that is what gets announced.
        full = await self._survey(self.store)
        self._pending, self._full_look = None, time.monotonic()
        if full.digest == self._known["digest"]:
            self._known["last_key"] = full.last_key
            return []
        self._known = {"digest": full.digest, "last_key": full.last_key}
        return [full.arrival(self.store, self._trigger.prefix)]

    async def announced(self, arrivals: list[DataArrival]) -> None:
        """Remember an arrival that was handed over."""
        (arrival,) = arrivals
        log.info("announced %d objects below %r, digest %s", arrival.num_objects, arrival.prefix, arrival.digest[:12])
        if self._memory is not None and self._known is not None:
            await asyncio.sleep(self._trigger.handover_seconds)
            await self._memory.save_or_log(self._known)

    @property
    def waits(self) -> bool:
        """Whether something has arrived that is not complete yet."""
        return self._pending is not None

    def hint(self, keys: Sequence[str]) -> None:
        """Make the next look a full one when a key sorts before what is known."""
        if self._known is not None and any(key <= self._known["last_key"] for key in keys):
            self._full_look = float("-inf")

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
        if news.manifests and not await asyncio.to_thread(fulfilled, store, news.manifests):
            return False
        marked = news.marked and (not full or known["digest"] == NOTHING)
        return marked or now - self._pending[1] >= self._trigger.settle

    async def _survey(self, store: ObjectStore, after: str = "") -> Listing:
        trigger = self._trigger
        return await asyncio.to_thread(survey, store, trigger.prefix, after=after, markers=trigger.markers)
