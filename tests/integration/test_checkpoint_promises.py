"""What is promised of checkpoints holds where disks, stores and machines are slow, and where a library misbehaves."""

from __future__ import annotations

from fixtures_checkpoint_store import Desk, MovingStore, desk, entry_of, store, until  # noqa: F401  (pytest fixtures)

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
