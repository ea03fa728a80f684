"""Uploads in folders of their own: each gets its event, when it is complete, whatever else happens meanwhile."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fixtures_triggers
import pytest
from fixtures_datasets import CountingStore
from fixtures_triggers import StateStore, connect, running

from deepseek_ops.adapters.stores import open_store
from deepseek_ops.airflow.sensors.data import DatasetArrivalSensor
from deepseek_ops.airflow.triggers import folder_watch
from deepseek_ops.airflow.triggers.data import ManifestTrigger, survey
from deepseek_ops.airflow.triggers.uploads import DataArrival, folder_of, listed
from deepseek_ops.core.ports import ObjectStore

state = fixtures_triggers.state
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
        "depth": 1,
    }
    return ManifestTrigger(**{**arguments, **changes})


async def begun(state: StateStore) -> None:
    async with asyncio.timeout(20):
        while not any("shards" in value for value in state.values.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def prefixes(events: list[dict[str, Any]]) -> list[str]:
    return [DataArrival.load(event).prefix for event in events]


async def test_each_folder_is_announced_by_itself_when_it_is_complete(lake: ObjectStore, state: StateStore) -> None:
    lake.create("raw/2026-01/old", b"1")
    async with running(watcher(settle=4), state) as listener:
        await begun(state)
        lake.create("raw/2026-03/a", b"half")
        lake.create("raw/2026-02/a", b"whole")
        lake.create("raw/2026-02/_READY", b"")
        (event,) = await listener.next(1, seconds=3.5)
        assert prefixes([event]) == ["raw/2026-02/"], "a marker completes its own folder and no other one"
        await listener.next(2)
        assert prefixes(listener.events) == ["raw/2026-02/", "raw/2026-03/"]
        assert event["digest"] == survey(lake, "raw/2026-02/").digest
        await asyncio.sleep(0.4)  # the handover
    async with running(watcher(), state) as listener:
        await asyncio.sleep(2 * SETTLE)
        assert listener.events == []


async def test_a_manifest_is_complete_when_all_it_names_is_there_with_its_size(
    lake: ObjectStore, state: StateStore
) -> None:
    async with running(watcher(settle=0.2), state) as listener:
        await begun(state)
        objects = [{"key": "a.jsonl", "size": 5}, {"key": "deep/b.jsonl", "size": 3}]
        lake.create("raw/1/manifest.json", json.dumps({"objects": objects}).encode())
        lake.create("raw/1/a.jsonl", b"12345")
        await asyncio.sleep(0.8)
        assert listener.events == [], "the quiet time does not complete what a manifest says is missing"
        lake.create("raw/1/deep/b.jsonl", b"1")
        await asyncio.sleep(0.6)
        assert listener.events == [], "a file that is shorter than the manifest says is still on its way"
        lake.delete(["raw/1/deep/b.jsonl"])
        lake.create("raw/1/deep/b.jsonl", b"123")
        (event,) = await listener.next(1)
    assert DataArrival.load(event).num_objects == 3


async def test_a_manifest_holds_a_whole_prefix_back_too(lake: ObjectStore, state: StateStore) -> None:
    async with running(watcher(depth=0, settle=3600), state) as listener:
        await begun(state)
        lake.create("raw/manifest.json", b'{"files": [{"path": "a"}, "b"]}')
        lake.create("raw/a", b"1")
        await asyncio.sleep(0.5)
        assert listener.events == []
        lake.create("raw/b", b"1")
        assert DataArrival.load((await listener.next(1))[0]).num_objects == 3


async def test_a_burst_gives_one_event_for_each_upload_through_restarts(lake: ObjectStore, state: StateStore) -> None:
    """Ten uploads in a second while the triggerer is stopped again and again: nothing is lost or comes changed."""
    names = [f"raw/{number:02}/" for number in (7, 2, 9, 0, 4, 1, 8, 3, 6, 5)]
    announced: list[dict[str, Any]] = []

    async def upload() -> None:
        for name in names:
            lake.create(f"{name}data", name.encode())
            await asyncio.sleep(0.05)
            lake.create(f"{name}_READY", b"")
            await asyncio.sleep(0.05)

    async with running(watcher(), state):
        await begun(state)
    uploading = asyncio.ensure_future(upload())
    async with asyncio.timeout(60):
        while len({event["prefix"] for event in announced}) < len(names):
            async with running(watcher(settle=3600), state) as listener:
                await listener.next(1)
                await asyncio.sleep(0.3)  # longer than the handover: what was announced is remembered
                announced += listener.events
    await uploading
    async with running(watcher(settle=0.2), state) as listener:
        await asyncio.sleep(1)
        announced += listener.events
    assert {event["prefix"] for event in announced} == set(names)
    # One that was handed over while its triggerer was stopped comes again, as it was: whoever consumes goes by digest.
    assert len({(event["prefix"], event["digest"]) for event in announced}) == len(names)


async def test_a_triggerer_that_dies_before_the_handover_announces_again(lake: ObjectStore, state: StateStore) -> None:
    async with running(watcher(), state):
        await begun(state)
    lake.create("raw/1/_READY", b"")
    state.fails = True
    trigger = watcher()
    trigger.asset_state_store = state  # type: ignore[assignment]
    state.fails = False
    events = trigger.run()
    first = (await asyncio.wait_for(anext(events), 10)).payload
    await events.aclose()  # killed right after the event was handed over, before it was remembered
    async with running(watcher(), state) as listener:
        (second,) = await listener.next(1)
    assert second == first, "equal events: whoever consumes them goes by prefix and digest"


async def test_between_full_looks_only_what_is_new_is_listed(
    lake: ObjectStore, state: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []

    class Listed(CountingStore):
        def list(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[Any]:
            asked.append((prefix, start_after))
            return super().list(prefix, start_after=start_after, limit=limit)

    for number in range(20):
        lake.create(f"raw/{number:02}/a", b"1")
    monkeypatch.setattr(ManifestTrigger, "open_store", lambda self: Listed(lake))
    async with running(watcher(settle=3600), state) as listener:
        await begun(state)
        asked.clear()
        lake.create("raw/30/a", b"1")
        await asyncio.sleep(0.5)
        lake.create("raw/30/_READY", b"")
        await listener.next(1)
    assert set(asked) <= {("raw/", "raw/19/a"), ("raw/", "raw/30/a"), ("raw/30/", ""), ("raw/", "raw/30/_READY")}


async def test_what_is_added_to_an_old_folder_is_found_by_the_full_look(lake: ObjectStore, state: StateStore) -> None:
    lake.create("raw/1/a", b"1")
    lake.create("raw/1/_READY", b"")
    lake.create("raw/2/a", b"1")
    async with running(watcher(rescan=0.2, settle=0.4), state) as listener:
        await begun(state)
        lake.create("raw/1/b", b"1")
        lake.create("raw/loose", b"no upload: it lies in no folder")
        (event,) = await listener.next(1)
        assert DataArrival.load(event).num_objects == 3
        await asyncio.sleep(1)
        assert len(listener.events) == 1


async def test_more_folders_than_the_memory_holds_are_not_announced_again(
    lake: ObjectStore, state: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder_watch, "MAX_KNOWN", 5)
    for number in range(12):
        lake.create(f"raw/{number:02}/_READY", b"")
    async with running(watcher(on_start="announce"), state) as listener:
        await listener.next(12)
        await asyncio.sleep(0.4)
    async with running(watcher(settle=0.1), state) as listener:
        await asyncio.sleep(1)
        assert listener.events == []
        lake.create("raw/99/_READY", b"")
        assert prefixes(await listener.next(1)) == ["raw/99/"]


def test_folders_and_manifests_are_read_as_they_are_written() -> None:
    assert [folder_of(key, "raw/", 1) for key in ("raw/a/b/c", "raw/a", "raw/a/b")] == ["raw/a/", "", "raw/a/"]
    assert folder_of("x/y/z", "", 2) == "x/y/"
    entries = b'{"entries": [{"url": "s3://lake/raw/1/a%20b", "meta": {"content_length": 7}}, {"no": 1}, 3]}'
    assert list(listed(entries, "raw/1/", "s3://lake")) == [("raw/1/a b", 7)]
    assert list(listed(b'{"files": ["./a", {"path": "raw/1/b", "bytes": 2}]}', "raw/1/", "s3://lake")) == [
        ("raw/1/a", None),
        ("raw/1/b", 2),
    ]
    for nothing in (b"", b"[]", b"{}", b'{"objects": 3}', b"\xff"):
        assert list(listed(nothing, "", "s3://lake")) == []


def test_the_sensor_waits_for_a_manifest_to_be_fulfilled(lake: ObjectStore) -> None:
    sensor = DatasetArrivalSensor(
        task_id="wait", store_conn_id="lake", prefix="raw/", after="", settle=3600, deferrable=False
    )
    lake.create("raw/manifest.json", b'{"objects": [{"key": "a", "size": 1}]}')
    assert sensor.poke({}).is_done is False
    lake.create("raw/a", b"1")
    done = sensor.poke({})
    assert done.is_done
    assert done.xcom_value["num_objects"] == 2
