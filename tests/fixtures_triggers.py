"""Stand-ins for what the triggerer gives a trigger: an asset state store, and a consumer of its events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from deepseek_ops.airflow.triggers.watching import WatchTrigger


class StateStore:
    """Behaves as Airflow's asset state accessor: JSON values under string keys, None is refused."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.assets: set[str] = set()
        self.fails = False

    def __getitem__(self, asset: Any) -> StateStore:
        self.assets.add(asset.name)
        return self

    async def aget(self, key: str, default: Any = None) -> Any:
        if self.fails:
            raise ConnectionError("the API server is away")
        return json.loads(self.values[key]) if key in self.values else default

    async def aset(self, key: str, value: Any) -> None:
        if self.fails:
            raise ConnectionError("the API server is away")
        if value is None:
            raise ValueError("Cannot set value as None")
        text = json.dumps(value)
        assert len(text) < 65_535, "Airflow warns above 64 KiB"
        self.values[key] = text

    async def adelete(self, key: str) -> None:
        if self.fails:
            raise ConnectionError("the API server is away")
        self.values.pop(key, None)


class Listener:
    """Consumes a running trigger and keeps what it fired."""

    def __init__(self, trigger: Any) -> None:
        self.events: list[dict[str, Any]] = []
        self._changed = asyncio.Event()
        self._task = asyncio.ensure_future(self._listen(trigger))

    async def _listen(self, trigger: Any) -> None:
        async for event in trigger.run():
            self.events.append(event.payload)
            self._changed.set()

    async def next(self, count: int, seconds: float = 20.0) -> list[dict[str, Any]]:
        """Return the events once there are ``count`` of them."""
        async with asyncio.timeout(seconds):
            while len(self.events) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.events

    @property
    def ended(self) -> bool:
        return self._task.done()

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@asynccontextmanager
async def running(trigger: WatchTrigger, store: StateStore | None = None) -> AsyncIterator[Listener]:
    """Run a watcher rebuilt from its own serialisation, as the triggerer would, with ``store`` as its asset's state."""
    _, kwargs = trigger.serialize()
    rebuilt = type(trigger)(**json.loads(json.dumps(kwargs)))
    rebuilt.asset_state_store = store  # type: ignore[assignment]
    rebuilt.handover_seconds = 0.05
    listener = Listener(rebuilt)
    try:
        yield listener
    finally:
        await listener.stop()


@pytest.fixture
def state() -> StateStore:
    return StateStore()


def connect(monkeypatch: pytest.MonkeyPatch, conn_id: str, **fields: object) -> None:
    """Define an Airflow connection for this test."""
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(fields))
