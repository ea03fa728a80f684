"""Data is announced when it is complete, once, and not before."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from fixtures_triggers import StateStore, connect, running, state  # noqa: F401

from deepseek_ops.adapters.stores import open_store
from deepseek_ops.airflow.triggers.data import NOTHING, DataArrival, ManifestTrigger, survey
from deepseek_ops.core.ports import ObjectStore

SETTLE = 1.5


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    uri = f"file://{tmp_path / 'lake'}"
    connect(monkeypatch, "lake", conn_type="deepseek_store", host=uri)
    return open_store(uri)


def watcher(**changes: Any) -> ManifestTrigger:
    arguments: dict[str, Any] = {
        "store_conn_id": "lake",
        "asset_name": "raw",
        "prefix": "raw/",
        "settle": SETTLE,
        "poll_interval": 0.1,
    }
    return ManifestTrigger(**{**arguments, **changes})


async def begun(state: StateStore) -> None:  # noqa: F811
    async with asyncio.timeout(20):
        while not any("shards" in value for value in state.values.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_an_upload_is_announced_when_it_has_settled(lake: ObjectStore, state: StateStore) -> None:  # noqa: F811
    lake.create("raw/2026-01/a", b"old")
    lake.create("elsewhere/z", b"no")
    async with running(watcher(), state) as listener:
        await begun(state)
        for name in ("c", "a", "b"):  # slower than the polls, faster than the quiet time, in any order
            lake.create(f"raw/2026-02/{name}", b"12345")
            await asyncio.sleep(0.4)
            assert listener.events == []
        (event,) = await listener.next(1)
        await asyncio.sleep(SETTLE * 2)
        assert len(listener.events) == 1
    arrival = DataArrival.load(event)
    assert (arrival.prefix, arrival.num_objects, arrival.num_bytes, arrival.uri) == ("raw/", 4, 18, lake.uri)
    assert arrival.digest == survey(lake, "raw/").digest
    async with running(watcher(), state) as listener:
        await asyncio.sleep(SETTLE * 2)
        assert listener.events == [], "a restarted triggerer announces nothing twice"


async def test_a_marker_completes_an_upload_at_once(lake: ObjectStore, state: StateStore) -> None:  # noqa: F811
    lake.create("raw/1/_READY", b"")
    async with running(watcher(settle=3600), state) as listener:
        await begun(state)
        lake.create("raw/2/a", b"1")
        await asyncio.sleep(0.5)
        assert listener.events == []
        lake.create("raw/2/_READY", b"")
        assert DataArrival.load((await listener.next(1))[0]).num_objects == 3


async def test_what_arrived_while_nobody_watched_is_found_wherever_it_sorts(
    lake: ObjectStore,
    state: StateStore,  # noqa: F811
) -> None:
    lake.create("raw/5", b"1")
    async with running(watcher(), state):
        await begun(state)
    lake.create("raw/3", b"1")
    async with running(watcher(), state) as listener:
        assert DataArrival.load((await listener.next(1))[0]).num_objects == 2


async def test_a_full_look_finds_what_was_inserted_changed_or_deleted(
    lake: ObjectStore,
    state: StateStore,  # noqa: F811
    tmp_path: Path,
) -> None:
    lake.create("raw/5", b"1")
    async with running(watcher(rescan=0.2, settle=0.2), state) as listener:
        await begun(state)
        lake.create("raw/1", b"1")
        await listener.next(1)
        lake.delete(["raw/5"])
        assert DataArrival.load((await listener.next(2))[1]).num_objects == 1


async def test_a_first_start_can_announce_what_is_there(lake: ObjectStore, state: StateStore) -> None:  # noqa: F811
    lake.create("raw/1/a", b"1")
    lake.create("raw/1/_SUCCESS", b"")
    async with running(watcher(on_start="announce", settle=3600), state) as listener:
        await listener.next(1)
    assert survey(lake, "none/").digest == NOTHING


async def test_a_store_that_is_away_is_waited_for(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    state: StateStore,  # noqa: F811
) -> None:
    connect(
        monkeypatch,
        "lake",
        conn_type="aws",
        login="k",
        password="s",
        extra={"uri": "s3://lake", "endpoint_url": "http://127.0.0.1:9", "region_name": "r"},
    )
    async with running(watcher(on_start="announce"), state) as listener:
        await asyncio.sleep(0.5)
        assert not listener.ended
        store = open_store(f"file://{tmp_path / 'lake'}")
        store.create("raw/a", b"1")
        connect(monkeypatch, "lake", conn_type="deepseek_store", host=f"file://{tmp_path / 'lake'}")
        await listener.next(1)


def test_the_trigger_is_rebuilt_from_plain_json() -> None:
    path, kwargs = watcher(after="x").serialize()
    assert path == f"{ManifestTrigger.__module__}.{ManifestTrigger.__name__}"
    assert ManifestTrigger(**json.loads(json.dumps(kwargs))).serialize() == (path, kwargs)
