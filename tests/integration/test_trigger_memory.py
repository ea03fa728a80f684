"""What a watcher remembers in Airflow's asset state, however many refs it watches: no value grows beyond its limit."""

from __future__ import annotations

import json

import pytest
from fixtures_triggers import StateStore

from deepseek_ops.airflow.triggers.announcements import GONE_KEPT, Announcements, seen_in
from deepseek_ops.airflow.triggers.watching import SHARDS, Memory

LIMIT = 64 * 1024
"""Airflow's ``[state_store] max_value_storage_bytes`` by default."""


def refs(count: int) -> dict[str, str]:
    name = "refs/heads/exp/a-rather-long-name-of-an-experiment"
    return {f"{name}-{number:06d}": f"{number:040x} {number}" for number in range(count)}


def largest(store: StateStore) -> int:
    return max(len(value) for value in store.values.values())


@pytest.mark.parametrize("count", [10, 10_000, 15_000, 40_000])
async def test_however_many_refs_there_are_all_are_remembered_in_values_that_airflow_takes(count: int) -> None:
    store = StateStore()
    await Memory(store, "key").save(refs(count))
    assert largest(store) < LIMIT
    assert await Memory(store, "key").load() == refs(count)


async def test_a_memory_that_grows_spreads_to_more_keys_and_leaves_none_behind() -> None:
    store = StateStore()
    memory = Memory(store, "key")
    await memory.save(refs(5000))
    assert len(store.values) == SHARDS + 1
    again = Memory(store, "key")  # a restarted watcher
    assert await again.load() == refs(5000)
    await again.save(refs(30_000))
    header = json.loads(store.values["watch-key"])
    assert header["shards"] > SHARDS
    assert len(store.values) == header["shards"] + 1
    changed = {**refs(30_000), next(iter(refs(1))): "x"}
    before = dict(store.values)
    await again.save(changed)
    assert sum(store.values[key] != before[key] for key in before) == 1, "only what changed is written"
    assert await Memory(store, "key").load() == changed


async def test_a_watcher_that_is_killed_while_its_memory_spreads_finds_the_old_one_whole() -> None:
    store = StateStore()
    memory = Memory(store, "key")
    await memory.save(refs(5000))
    plain, written = store.aset, 0

    async def killed(key: str, value: object) -> None:
        nonlocal written
        if written == 20:
            raise ConnectionError("killed")
        written += 1
        await plain(key, value)

    store.aset = killed  # type: ignore[method-assign]
    with pytest.raises(ConnectionError):
        await memory.save(refs(30_000))
    store.aset = plain  # type: ignore[method-assign]
    again = Memory(store, "key")
    assert await again.load() == refs(5000)
    await again.save(refs(30_000))
    assert await Memory(store, "key").load() == refs(30_000)


def test_the_numbers_of_deleted_refs_are_kept_and_where_they_are_too_many_the_smallest_are_forgotten() -> None:
    watch = Announcements(claimed=True)
    watch.begin({})
    there = {f"refs/heads/{number}": f"{1:040x}" for number in range(GONE_KEPT + 10)}
    busy = "refs/heads/0"
    for commit in range(2, 5):
        (ref,) = watch.moves("https://h/m.git", {busy: f"{commit:040x}"}, {})
        watch.settle(ref, 0.0, told=None)
    for ref in watch.moves("https://h/m.git", {name: at for name, at in there.items() if name != busy}, {}):
        watch.settle(ref, 0.0, told=None)
    kept = watch.entries({})  # all are deleted
    assert seen_in(kept) == {}
    assert sum(name.startswith("refs/") for name in kept) == GONE_KEPT
    later = Announcements(claimed=True)
    assert not later.begin(kept)
    moves = {ref.name: ref.move for ref in later.moves("https://h/m.git", {**there, "refs/heads/new": "a" * 40}, {})}
    epoch = kept["epoch"]
    assert moves[busy] == f"{epoch}.4"
    assert set(moves.values()) == {f"{epoch}.2", f"{epoch}.4"}, "no name comes twice, not even of the forgotten"
