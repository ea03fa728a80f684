"""S3's notifications through SQS wake the watcher; the listing decides; the queue may be slow, wrong or away."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import fixtures_queue
import fixtures_triggers
import pytest
from fixtures_queue import Lake, redrive
from fixtures_triggers import StateStore, running

from deepseek_ops.airflow.triggers.data import ManifestTrigger
from deepseek_ops.airflow.triggers.queue import Bell
from deepseek_ops.airflow.triggers.queue_events import NotAnEventError, ObjectEvent, events_in
from deepseek_ops.airflow.triggers.uploads import DataArrival

state = fixtures_triggers.state
notified_lake = fixtures_queue.notified_lake
HOUR = 3600.0


def watcher(lake: Lake, **changes: Any) -> ManifestTrigger:
    arguments: dict[str, Any] = {
        "store_conn_id": "lake",
        "asset_name": "raw",
        "prefix": "raw/",
        "settle": HOUR,
        "poll_interval": HOUR,
        "depth": 1,
        "queue": lake.queue,
        "queue_conn_id": "queue",
    }
    return ManifestTrigger(**{**arguments, **changes})


async def begun(state: StateStore) -> None:
    async with asyncio.timeout(30):
        while not any("shards" in value for value in state.values.values()):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def emptied(lake: Lake, seconds: float = 20.0) -> None:
    async with asyncio.timeout(seconds):
        while await asyncio.to_thread(lake.waiting):  # noqa: ASYNC110
            await asyncio.sleep(0.2)


async def test_an_upload_is_announced_long_before_the_next_poll(notified_lake: Lake, state: StateStore) -> None:
    lake = notified_lake
    async with running(watcher(lake), state) as listener:
        await begun(state)
        await asyncio.to_thread(lake.put, "raw/größe 1+1/a b")
        await asyncio.to_thread(lake.put, "raw/größe 1+1/_READY", b"")
        (event,) = await listener.next(1, seconds=30)
        assert DataArrival.load(event).prefix == "raw/größe 1+1/"
        await emptied(lake)
    assert len(listener.events) == 1


async def test_a_burst_is_neither_lost_nor_doubled(notified_lake: Lake, state: StateStore) -> None:
    lake = notified_lake

    def upload() -> None:
        for number in range(10):
            lake.put(f"raw/{number}/data")
            lake.put(f"raw/{number}/_READY", b"")

    async with running(watcher(lake), state) as listener:
        await begun(state)
        await asyncio.to_thread(upload)
        await listener.next(10, seconds=60)
        await emptied(lake)
        await asyncio.sleep(0.5)
    assert sorted(event["prefix"] for event in listener.events) == [f"raw/{number}/" for number in range(10)]


async def test_an_object_that_sorts_before_what_is_known_is_found_by_its_event(
    notified_lake: Lake, state: StateStore
) -> None:
    lake = notified_lake
    lake.put("raw/zzz/data")
    async with running(watcher(lake), state) as listener:
        await begun(state)
        await asyncio.to_thread(lake.put, "raw/aaa/_READY", b"")
        assert (await listener.next(1, seconds=30))[0]["prefix"] == "raw/aaa/"
    async with running(watcher(lake, depth=0, settle=0.1), StateStore()) as listener:
        await asyncio.sleep(2)
        await asyncio.to_thread(lake.put, "raw/bbb")
        await asyncio.sleep(1)
        await asyncio.to_thread(lake.put, "raw/bbc")
        assert DataArrival.load((await listener.next(1, seconds=30))[0]).num_objects >= 3


async def test_messages_stay_until_the_event_was_handed_over(notified_lake: Lake, state: StateStore) -> None:
    lake = notified_lake
    trigger = watcher(lake)
    trigger.asset_state_store = state  # type: ignore[assignment]
    trigger.handover_seconds = 0.05
    events = trigger.run()
    first = asyncio.ensure_future(anext(events))
    await begun(state)
    await asyncio.to_thread(lake.put, "raw/1/_READY", b"")
    payload = (await asyncio.wait_for(first, 30)).payload
    assert await asyncio.to_thread(lake.waiting) > 0, "the message is not deleted yet"
    await events.aclose()  # the triggerer dies here
    async with running(watcher(lake), state) as listener:
        assert (await listener.next(1, seconds=30))[0] == payload
        await emptied(lake)


async def test_messages_that_are_no_events_or_lies_do_no_harm(notified_lake: Lake, state: StateStore) -> None:
    lake = notified_lake
    lie = {"Records": [{"s3": {"bucket": {"name": "lake"}, "object": {"key": "raw/9/_READY"}}}]}
    elsewhere = {"Records": [{"s3": {"bucket": {"name": "other"}, "object": {"key": "raw/9/_READY"}}}]}
    async with running(watcher(lake), state) as listener:
        await begun(state)
        for body in (
            "hello",
            "[]",
            "{}",
            json.dumps(lie),
            json.dumps(elsewhere),
            json.dumps({"Event": "s3:TestEvent"}),
        ):
            await asyncio.to_thread(lake.send, body)
        await emptied(lake)
        assert listener.events == [], "the listing is the truth"
        await asyncio.to_thread(lake.put, "raw/1/_READY", b"")
        await listener.next(1, seconds=30)


async def test_with_a_redrive_policy_poison_goes_to_the_dead_letter_queue(
    notified_lake: Lake, state: StateStore
) -> None:
    lake = notified_lake
    dead = redrive(lake)
    async with running(watcher(lake), state):
        await begun(state)
        await asyncio.to_thread(lake.send, "poison")
        async with asyncio.timeout(60):
            while True:
                there = await asyncio.to_thread(lake.sqs.receive_message, QueueUrl=dead)
                if there.get("Messages"):
                    break
                await asyncio.sleep(0.5)
    assert there["Messages"][0]["Body"] == "poison"


async def test_without_its_queue_the_watcher_polls_on(notified_lake: Lake, state: StateStore) -> None:
    lake = notified_lake
    lake.sqs.delete_queue(QueueUrl=lake.queue)
    async with running(watcher(lake, poll_interval=0.3), state) as listener:
        await begun(state)
        await asyncio.to_thread(lake.put, "raw/1/_READY", b"")
        await listener.next(1, seconds=30)


async def test_without_the_amazon_provider_the_watcher_polls_on(
    notified_lake: Lake, state: StateStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "airflow.providers.amazon.aws.hooks.sqs", None)
    bell = Bell(notified_lake.queue, "queue", "raw/")
    await bell.wait(0.2, "s3://lake")
    assert "deepseek-ops[amazon]" in caplog.text


def test_every_form_of_an_event_is_read() -> None:
    record = {"eventSource": "aws:s3", "s3": {"bucket": {"name": "lake"}, "object": {"key": "raw/a+b%2Bc/%C3%BC"}}}
    plain = json.dumps({"Records": [record, record]})
    wanted = ObjectEvent("lake", "raw/a b+c/ü")
    assert events_in(plain) == [wanted, wanted]
    assert events_in(json.dumps({"Type": "Notification", "Message": plain})) == [wanted, wanted]
    bridge = {"source": "aws.s3", "detail": {"bucket": {"name": "lake"}, "object": {"key": "raw/a b+c/ü"}}}
    assert events_in(json.dumps(bridge)) == [wanted]
    assert events_in('{"Event": "s3:TestEvent", "Bucket": "lake"}') == []
    for wrong in (
        "",
        "x",
        "[]",
        "{}",
        '{"Records": 1}',
        '{"Records": [{}]}',
        '{"source": "aws.s3"}',
        '{"Records": [1]}',
    ):
        with pytest.raises(NotAnEventError):
            events_in(wrong)
    nested = plain
    for _ in range(4):
        nested = json.dumps({"Type": "Notification", "Message": nested})
    with pytest.raises(NotAnEventError):
        events_in(nested)


def test_the_trigger_with_a_queue_is_rebuilt_from_plain_json(notified_lake: Lake) -> None:
    path, kwargs = watcher(notified_lake).serialize()
    assert ManifestTrigger(**json.loads(json.dumps(kwargs))).serialize() == (path, kwargs)
    assert "secret" not in json.dumps(kwargs)
