"""What is promised of checkpoints holds where disks, stores and machines are slow, and where a library misbehaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from fixtures_checkpoint_store import Desk, MovingStore, desk, entry_of, store, until  # noqa: F401  (pytest fixtures)
from fixtures_checkpoint_ticks import March

from deepseek_ops.core.errors import StoreAccessError
from deepseek_ops.jobs import training_upload
from deepseek_ops.training.checkpoints import CheckpointName, Life


def test_an_upload_that_is_slower_than_the_checkpoints_come_still_arrives(desk, store):  # noqa: F811
    store.slow.set()
    desk.uploads.offer(desk.make(10))
    until(lambda: desk.uploads._busy)
    for step in (20, 30, 40, 50):  # as the sealing thread does it: offer, then prune
        desk.uploads.offer(desk.make(step))
        desk.shelf.prune()
    assert [one.name.step for one in desk.shelf.all()] == [10, 40, 50], "what is being sent stays"
    store.slow.clear()
    desk.sent()
    assert [one.name.step for one in desk.stored.candidates()] == [10, 50]
    assert "checkpoint_upload_delayed" not in desk.kinds()
    desk.shelf.prune()
    assert [one.name.step for one in desk.shelf.all()] == [40, 50]


def test_what_was_said_before_a_checkpoint_is_in_the_store_before_it_is_whole(desk, store):  # noqa: F811
    first, second = desk.make(10), desk.make(20)
    desk.mute = True
    for name in (first, second):
        desk.uploads.offer(name)
        desk.sent()
    assert desk.settled == [[], [], [first]], "tried again while it could not be said"
    assert [one.name for one in desk.stored.candidates()] == [first, second]


def test_a_part_that_comes_late_completes_its_checkpoint_although_a_newer_one_is_on_its_way(tmp_path, store):  # noqa: F811
    desks = [Desk(tmp_path, store, node=node, num_nodes=2) for node in (0, 1)]
    first, second = (CheckpointName(Life(1, 0), step) for step in (10, 20))
    for name in (first, second):
        desks[0].uploads.offer(desks[0].make(name.step))
        until(lambda name=name: store.head(f"runs/this/checkpoints/{name}/node-000.json"))
    desks[1].uploads.offer(desks[1].make(10))
    until(lambda: [one.name for one in desks[0].stored.candidates()] == [first])
    desks[1].uploads.offer(desks[1].make(20))
    for one in desks:
        one.sent()
    assert [one.name for one in desks[0].stored.candidates()] == [first, second]
    assert desks[0].kinds().count("checkpoint_uploaded") == 2


def test_a_checkpoint_that_becomes_healthy_while_it_is_still_written_is_healthy_on_the_disk(desk):  # noqa: F811
    name = CheckpointName(Life(1, 0), 10)
    desk.shelf.mark_healthy(name)  # N steps went by faster than the disk could write
    desk.make(10)
    assert desk.shelf.get(name).healthy
    desk.shelf.remove(name)
    desk.make(10)
    assert not desk.shelf.get(name).healthy, "one that was given up takes its health with it"


def test_an_error_that_no_adapter_knows_costs_a_try_and_not_every_upload_to_come(desk, store):  # noqa: F811
    put, failed = store.put_blob, []

    def broken_once(key, source):
        if not failed:
            failed.append(key)
            raise RuntimeError("Response ended prematurely")
        put(key, source)

    store.put_blob = broken_once
    desk.uploads.offer(desk.make(10))
    desk.sent()
    assert failed
    assert [one.name.step for one in desk.stored.candidates()] == [10]


# --- several machines ---


@pytest.fixture
def march(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., March]]:
    monkeypatch.setattr(training_upload, "PARTS_POLL_SECONDS", 0.005)
    made = []

    def make(nodes: int, **fields: tuple[int, int]) -> March:
        made.append(March(tmp_path, nodes, **fields))
        return made[-1]

    yield make
    for each in made:
        each.end()


def test_of_machines_that_send_at_different_speeds_every_third_checkpoint_becomes_whole(march):
    """A send takes 1.2 to 3 intervals, another time on each machine; the agreed one stays until it is sent."""
    marching = march(3)
    marching.go(24)
    whole = marching.whole()
    assert len(whole) >= 7
    assert max(after - before for before, after in pairwise(whole)) <= 3, whole
    assert max(len(one.shelf.all()) for one in marching.desks) <= 3, "what is not to be sent is not held"


def test_a_machine_that_could_not_write_the_agreed_checkpoint_keeps_nobody_waiting(march):
    marching = march(2, ticks=(0, 0))
    marching.save(10, without=(1,))
    until(lambda: marching.desks[0].uploads._open)
    marching.save(20)
    until(lambda: marching.whole() == [2])


def test_a_part_that_the_store_refuses_keeps_nobody_waiting(march):
    marching = march(2, ticks=(0, 0))
    put = marching.stores[1].put_blob

    def refused(_key: str, _source: object) -> None:
        raise StoreAccessError("s3://here", "no")

    marching.stores[1].put_blob = refused
    marching.save(10)
    until(lambda: "checkpoint_upload_failed" in marching.desks[1].kinds())
    until(lambda: marching.desks[0].uploads._open)
    assert not marching.desks[0].uploads.wants_another()
    assert marching.desks[1].uploads.wants_another()
    marching.save(20)
    marching.stores[1].put_blob = put
    until(lambda: marching.whole()[-1:] == [2])


def test_a_checkpoint_that_a_disk_lost_keeps_nobody_waiting(march):
    marching = march(2, ticks=(0, 0))
    marching.stores[1].away.set()
    marching.save(10)
    until(lambda: "checkpoint_upload_delayed" in marching.desks[1].kinds())
    assert not marching.desks[1].uploads.wants_another(), "a store that is away is waited for"
    marching.desks[1].shelf.remove(CheckpointName(Life(1, 0), 10))
    marching.stores[1].away.clear()
    until(marching.desks[1].uploads.wants_another)
    marching.save(20)
    until(lambda: marching.whole() == [2])


def test_a_checkpoint_that_somebody_wants_goes_up_behind_the_one_under_way(march):
    marching = march(2, ticks=(5, 5))
    marching.save(10)
    until(marching.is_quiet)
    marching.save(20)
    marching.save(30, must=True)
    for _ in range(12):
        marching.clock.tick()
        until(marching.is_quiet)
    assert marching.whole() == [1, 3]


def test_a_checkpoint_that_is_given_up_frees_the_way_for_the_next(march):
    marching = march(2, ticks=(0, 0))
    marching.stores[1].slow.set()
    marching.save(10)
    until(lambda: marching.desks[0].uploads._open)
    for one in marching.desks:
        one.uploads.forget([CheckpointName(Life(1, 0), 10)])
    assert marching.desks[0].uploads.wants_another()
    marching.stores[1].slow.clear()
