"""What every watcher shares: its memory between triggerers, and how long it waits after an error."""

from __future__ import annotations

import logging
import random
import zlib
from collections.abc import Mapping
from typing import Any, Literal

from airflow.triggers.base import BaseEventTrigger
from pydantic import JsonValue

from deepseek_ops.core.digests import canonical_json, digest_of

OnStart = Literal["skip", "announce"]

LONGEST_BACKOFF_SECONDS = 60.0
SHARDS = 16

log = logging.getLogger(__name__)


def pause_after(failures: int, interval: float) -> float:
    """Return the seconds to wait after that many failures in a row: doubling, bounded, with jitter.

    Jitter keeps many triggers from coming back to a server that just came up in the same moment.
    """
    longest = max(interval, LONGEST_BACKOFF_SECONDS)
    wait = min(longest, max(interval, 1.0) * 2.0 ** min(failures - 1, 10))
    return wait * random.uniform(0.5, 1.0)  # noqa: S311  (no secret)


class WatchTrigger(BaseEventTrigger):
    """Base of the watchers: one asset's state store as memory, where Airflow has one (3.3)."""

    handover_seconds = 3.0
    """From ``yield`` until Airflow has stored the event: the triggerer hands over once a second."""

    def __init__(self, *, asset_name: str, poll_interval: float, on_start: OnStart) -> None:
        super().__init__()
        self.asset_name = asset_name
        self.poll_interval = poll_interval
        self.on_start = on_start

    def memory(self, identity: list[JsonValue]) -> Memory | None:
        """Return the memory of the watcher with these filters; None in a deferred task and below Airflow 3.3."""
        store: Any = getattr(self, "asset_state_store", None)
        if store is None:
            return None
        if self.asset_name:
            # Two assets may share one trigger row; only by name is it certain whose state this is.
            from airflow.sdk import Asset

            store = store[Asset.ref(name=self.asset_name)]
        return Memory(store, digest_of(canonical_json(identity))[:12])


class Memory:
    """A dictionary of strings in the asset state store, spread over 16 keys: a value there has 64 KiB at most."""

    def __init__(self, store: Any, key: str) -> None:
        self._store = store
        self._key = f"watch-{key}"
        self._stored: dict[int, dict[str, str]] | None = None

    async def load(self) -> dict[str, str] | None:
        """Return what was remembered, or None when nothing ever was."""
        if await self._store.aget(self._key, None) is None:
            return None
        self._stored = {}
        for shard in range(SHARDS):
            self._stored[shard] = dict(await self._store.aget(self._shard_key(shard), {}))
        return {name: value for part in self._stored.values() for name, value in part.items()}

    async def save(self, values: Mapping[str, str]) -> None:
        """Remember ``values``; only the keys that changed are written."""
        first = self._stored is None
        known = self._stored if self._stored is not None else {}
        parts: dict[int, dict[str, str]] = {shard: {} for shard in range(SHARDS)}
        for name, value in values.items():
            parts[zlib.crc32(name.encode()) % SHARDS][name] = value
        for shard, part in parts.items():
            if first or part != known.get(shard, {}):
                await self._store.aset(self._shard_key(shard), part)
                known[shard] = part
        if first:  # last: after a crash before it, the next start begins afresh and takes no part for the whole
            await self._store.aset(self._key, {"shards": SHARDS})
        self._stored = known

    async def save_or_log(self, values: Mapping[str, str]) -> bool:
        """Remember ``values`` and return True, or log why not: a restart would announce again, nothing is lost."""
        try:
            await self.save(values)
        except Exception:  # Airflow's API server is away: watching goes on
            log.warning("could not store the watermark; trying again with the next poll", exc_info=True)
            return False
        return True

    def _shard_key(self, shard: int) -> str:
        return f"{self._key}-{shard:x}"
