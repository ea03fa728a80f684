"""What every watcher shares: its memory between triggerers, and how long it waits after an error."""

from __future__ import annotations

import json
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
"""Keys that a memory begins with."""
SHARD_BYTES = 48 * 1024
"""A key that would hold more makes the memory spread over twice as many: Airflow's limit is 64 KiB by default."""

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
    """A dictionary of strings in the asset state store, spread over keys of 48 KiB at most: as many as it needs.

    ``watch-<key>`` says over how many. It spreads to a new set of keys, and says so when all of them are written: a
    process that is killed in between leaves the old set, which is whole.
    """

    def __init__(self, store: Any, key: str) -> None:
        self._store = store
        self._key = f"watch-{key}"
        self._shards = SHARDS
        self._stored: dict[int, dict[str, str]] | None = None

    async def load(self) -> dict[str, str] | None:
        """Return what was remembered, or None when nothing ever was."""
        header = await self._store.aget(self._key, None)
        if header is None:
            return None
        self._shards = int(header["shards"])
        self._stored = {}
        for shard in range(self._shards):
            self._stored[shard] = dict(await self._store.aget(self._shard_key(self._shards, shard), {}))
        return {name: value for part in self._stored.values() for name, value in part.items()}

    async def save(self, values: Mapping[str, str]) -> None:
        """Remember ``values``; only the keys that changed are written."""
        before, known = self._shards, self._stored
        shards, parts = before, _spread(values, before)
        while shards < len(values) and any(
            len(json.dumps(part)) > SHARD_BYTES for at, part in parts.items() if known is None or part != known.get(at)
        ):
            shards, known = 2 * shards, None
            parts = _spread(values, shards)
        for shard, part in parts.items():
            if known is None or part != known.get(shard, {}):
                await self._store.aset(self._shard_key(shards, shard), part)
                if known is not None:
                    known[shard] = part
        if known is None:  # last: after a crash before it, what was whole is taken for the whole
            await self._store.aset(self._key, {"shards": shards})
        self._shards, self._stored = shards, parts
        if shards != before:
            await self._forget(before)

    async def save_or_log(self, values: Mapping[str, str]) -> bool:
        """Remember ``values`` and return True, or log why not: a restart would announce again, nothing is lost."""
        try:
            await self.save(values)
        except Exception:  # Airflow's API server is away: watching goes on
            log.warning("could not store the watermark; trying again with the next poll", exc_info=True)
            return False
        return True

    async def _forget(self, shards: int) -> None:
        """Delete the keys that the memory was spread over before."""
        try:
            for shard in range(shards):
                await self._store.adelete(self._shard_key(shards, shard))
        except Exception:  # they are read by nobody
            log.warning("could not delete %d old keys of the watermark", shards, exc_info=True)

    def _shard_key(self, shards: int, shard: int) -> str:
        return f"{self._key}-{shard:x}" if shards == SHARDS else f"{self._key}-{shards}-{shard:x}"


def _spread(values: Mapping[str, str], shards: int) -> dict[int, dict[str, str]]:
    parts: dict[int, dict[str, str]] = {shard: {} for shard in range(shards)}
    for name, value in values.items():
        parts[zlib.crc32(name.encode()) % shards][name] = value
    return parts
