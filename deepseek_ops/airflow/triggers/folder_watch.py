"""Many uploads below one prefix, each in a folder of its own: each is announced by itself when it is complete."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from deepseek_ops.airflow.triggers.uploads import DataArrival, Listing, folder_of, fulfilled, survey, survey_folders

if TYPE_CHECKING:
    from deepseek_ops.airflow.triggers.data import ManifestTrigger
    from deepseek_ops.airflow.triggers.watching import Memory
    from deepseek_ops.core.ports import ObjectStore

log = logging.getLogger(__name__)

LAST = "/last"
"""Where the memory keeps the last key that was seen; no folder begins with a slash."""
FLOOR = "/floor"
"""Folders up to this one are old, whatever they hold: the memory has room for so many only."""
MAX_KNOWN = 8000
DIGEST_CHARACTERS = 32


class FolderWatch:
    """One run of the trigger over folders: what was announced, and what has arrived but is not complete."""

    def __init__(self, trigger: ManifestTrigger) -> None:
        self._trigger = trigger
        self.store: ObjectStore | None = None
        self._memory: Memory | None = None
        self._known: dict[str, str] | None = None
        self._pending: dict[str, tuple[str, float]] = {}  # folder -> digest, when it was first seen so
        self._hinted: set[str] = set()
        self._full_look = time.monotonic()

    async def look(self) -> list[DataArrival]:
        """Return the uploads that are complete and were not announced."""
        if self.store is None:
            self.store = await asyncio.to_thread(self._trigger.open_store)
        known = self._known if self._known is not None else await self._begin(self.store)
        if known is None:
            return []
        self._known = known
        found = await asyncio.to_thread(self._changed, self.store, known)
        self._hinted.clear()
        self._pending = {name: seen for name, seen in self._pending.items() if name in found}
        arrivals = []
        for folder, listing in sorted(found.items()):
            if await asyncio.to_thread(self._complete, self.store, folder, listing):
                self._pending.pop(folder, None)
                known[folder] = listing.digest[:DIGEST_CHARACTERS]
                arrivals.append(listing.arrival(self.store, folder))
        return arrivals

    async def announced(self, arrivals: list[DataArrival]) -> None:
        """Remember arrivals that were handed over."""
        for arrival in arrivals:
            log.info("announced %d objects of %s, digest %s", arrival.num_objects, arrival.prefix, arrival.digest[:12])
        if self._memory is not None and self._known is not None:
            await asyncio.sleep(self._trigger.handover_seconds)
            _forget_oldest(self._known)
            await self._memory.save_or_log(self._known)

    @property
    def waits(self) -> bool:
        """Whether something has arrived that is not complete yet."""
        return bool(self._pending)

    def hint(self, keys: Sequence[str]) -> None:
        """Let the next look see the folders of these keys, wherever they sort."""
        folders = {folder_of(key, self._trigger.prefix, self._trigger.depth) for key in keys}
        self._hinted |= folders - {""}

    async def _begin(self, store: ObjectStore) -> dict[str, str] | None:
        trigger = self._trigger
        self._memory = trigger.memory([trigger.store_conn_id, store.uri, trigger.prefix, trigger.depth])
        known = await self._memory.load() if self._memory is not None else None
        if known is not None:
            self._full_look = float("-inf")  # what came while nobody watched may lie anywhere
            return known
        known = {}
        if trigger.on_start == "skip":
            known = await asyncio.to_thread(self._there, store)
            _forget_oldest(known)
        if self._memory is not None:
            await self._memory.save(known)
        return known

    def _there(self, store: ObjectStore) -> dict[str, str]:
        known: dict[str, str] = {}
        for folder, listing in survey_folders(store, self._trigger.prefix, self._trigger.depth):
            known[folder] = listing.digest[:DIGEST_CHARACTERS]
            known[LAST] = listing.last_key
        return known

    def _changed(self, store: ObjectStore, known: dict[str, str]) -> dict[str, Listing]:
        """Return the folders that differ from what was announced, with their whole listings.

        Between full looks only keys after the last known one are listed, and the folders that are not complete.
        """
        trigger, now = self._trigger, time.monotonic()
        full = now - self._full_look >= trigger.rescan or LAST not in known
        after = "" if full else known[LAST]
        seen = dict(survey_folders(store, trigger.prefix, trigger.depth, after=after, markers=trigger.markers))
        if full:
            self._full_look = now
        if seen:
            known[LAST] = max(known.get(LAST, ""), *(listing.last_key for listing in seen.values()))
        whole = seen if full else {name: self._survey(store, name) for name in {*seen, *self._pending, *self._hinted}}
        floor = known.get(FLOOR, "")
        return {
            name: listing
            for name, listing in whole.items()
            if name > floor and listing.num_objects and listing.digest[:DIGEST_CHARACTERS] != known.get(name)
        }

    def _survey(self, store: ObjectStore, folder: str) -> Listing:
        return survey(store, folder, markers=self._trigger.markers)

    def _complete(self, store: ObjectStore, folder: str, listing: Listing) -> bool:
        """Return whether a folder is complete; the quiet time counts from when it last changed."""
        now = time.monotonic()
        digest, since = self._pending.setdefault(folder, (listing.digest, now))
        if digest != listing.digest:
            since = now
            self._pending[folder] = (listing.digest, since)
        if listing.manifests and not fulfilled(store, listing.manifests):
            return False
        # In a folder that was announced before, the marker may be that of the earlier upload.
        fresh = self._known is None or folder not in self._known
        return (listing.marked and fresh) or now - since >= self._trigger.settle


def _forget_oldest(known: dict[str, str]) -> None:
    folders = sorted(name for name in known if not name.startswith("/"))
    for name in folders[:-MAX_KNOWN]:
        del known[name]
        known[FLOOR] = name
