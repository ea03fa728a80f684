"""The protocol between writers and collectors, one step of each at a time, on a local store."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from fixtures_gc import NOTHING_KEPT, QUICK, QUICK_WRITER, commit, fill, is_whole, nothing_else_names

from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.core.objects import blob_key
from deepseek_ops.core.records import digest_of
from deepseek_ops.data import DatasetRepository
from deepseek_ops.data.gc_blobs import GuardedBlobs
from deepseek_ops.data.gc_clock import Heartbeat, store_time
from deepseek_ops.data.gc_guard import GuardedStore, RelianceLostError, writing
from deepseek_ops.data.gc_leases import WRITERS, GuardTimes, SweepUnderWayError, writers_unaware_of
from deepseek_ops.data.gc_plan import plan_collection
from deepseek_ops.data.gc_runs import new_marker, open_markers
from deepseek_ops.data.gc_sweep import (
    CollectorStoppedError,
    SweepRunningError,
    SweepTimes,
    WritersBusyError,
    sweep,
)

STRAY = b"nobody names this"
KEY = blob_key(digest_of(STRAY))


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    opened = LocalStore(tmp_path / "store")
    opened.put_blob(KEY, STRAY)
    time.sleep(0.02)
    return opened


def plan(store: LocalStore) -> str:
    return plan_collection(store, NOTHING_KEPT, nothing_else_names, write=True).run


@contextmanager
def sweep_under_way(store: LocalStore, run: str, *, abandoned_seconds: float = 60) -> Iterator[Heartbeat]:
    """Give the marker of a sweep that does nothing."""
    body = {"run": run, "abandoned_seconds": abandoned_seconds}
    marker = Heartbeat(store, new_marker(run), body, seconds=60)
    marker.start()
    try:
        yield marker
    finally:
        marker.end()
        store.delete([marker.key])


def still_waits(future: Future[object]) -> bool:
    time.sleep(0.3)
    return not future.done()


def unguarded_lease_is_gone(store: LocalStore) -> bool:
    return not list(store.list("leases/writers/")) and not list(store.list("leases/seen/"))


class TestWriter:
    @pytest.mark.parametrize("what", ["head", "put_blob", "get"])
    def test_waits_until_a_sweep_that_may_delete_what_it_touches_is_over(self, store: LocalStore, what: str) -> None:
        run = plan(store)

        def write() -> object:
            with writing(store, times=QUICK_WRITER) as guarded:
                return guarded.put_blob(KEY, STRAY) if what == "put_blob" else getattr(guarded, what)(KEY)

        with ThreadPoolExecutor(1) as pool:
            with sweep_under_way(store, run):
                future = pool.submit(write)
                assert still_waits(future)
            future.result(timeout=10)
        assert unguarded_lease_is_gone(store)

    def test_does_not_wait_for_a_sweep_of_other_things(self, store: LocalStore, tmp_path: Path) -> None:
        run = plan(store)
        with sweep_under_way(store, run), writing(store, times=QUICK_WRITER) as guarded:
            version = commit(guarded, fill(tmp_path / "v", 1)).version
        assert is_whole(store, version)

    def test_gives_up_with_the_name_of_the_sweep(self, store: LocalStore) -> None:
        run = plan(store)
        with (
            sweep_under_way(store, run),
            pytest.raises(SweepUnderWayError, match=run),
            writing(store, times=GuardTimes(wait_seconds=0.1, poll_seconds=0.02)) as guarded,
        ):
            guarded.head(KEY)
        assert unguarded_lease_is_gone(store)

    def test_passes_a_collector_that_died(self, store: LocalStore) -> None:
        run = plan(store)
        with sweep_under_way(store, run, abandoned_seconds=0.2) as marker:
            marker.end()
            with writing(store, times=QUICK_WRITER) as guarded:
                assert guarded.head(KEY) is not None
                assert list(store.list("leases/seen/")) == [], "whoever takes over has to wait for this writer"

    def test_that_found_something_keeps_it_for_a_week(self, store: LocalStore, tmp_path: Path) -> None:
        source = tmp_path / "weights"
        source.write_bytes(b"w" * 300_000)
        blobs = GuardedBlobs(store)
        digest, _ = blobs.put_file(source)
        time.sleep(0.02)
        assert blobs.put_file(source)[0] == digest
        time.sleep(0.02)
        report = sweep(store, NOTHING_KEPT, plan(store), nothing_else_names, times=QUICK)
        assert report.deleted["objects"].objects == 1, "the stray one"
        assert store.head(blob_key(digest)) is not None

    def test_that_lost_its_lease_looks_whether_all_is_there(self, store: LocalStore, tmp_path: Path) -> None:
        folder = fill(tmp_path / "v", 1)
        with writing(store, times=QUICK_WRITER) as guarded:
            lapse(guarded)
            with pytest.raises(RelianceLostError, match="packs/"):
                commit(_DeletesPacksBeforeTheCommit(guarded, store), folder)
        assert DatasetRepository(store).datasets() == []

    def test_that_lost_its_lease_and_nothing_else_publishes(self, store: LocalStore, tmp_path: Path) -> None:
        with writing(store, times=QUICK_WRITER) as guarded:
            lapse(guarded)
            version = commit(guarded, fill(tmp_path / "v", 1)).version
        assert is_whole(store, version)


def lapse(guarded: GuardedStore) -> None:
    """Let it be as if the writer's process had been stopped for longer than its lease."""
    guarded._lease._heartbeat._lapsed = True


class _DeletesPacksBeforeTheCommit(GuardedStore):
    """Stands for a collection that went on while the writer stood still."""

    def __init__(self, guarded: GuardedStore, store: LocalStore) -> None:
        self.__dict__.update(guarded.__dict__)
        self._behind = store

    def put_blob(self, key: str, source: bytes | Path) -> None:
        super().put_blob(key, source)
        if key.startswith("commits/"):
            self._behind.delete([info.key for info in self._behind.list("packs/")])


class TestCollector:
    def test_waits_for_a_writer_that_was_there_before_it(self, store: LocalStore) -> None:
        run = plan(store)
        with ThreadPoolExecutor(1) as pool:
            with writing(store, times=QUICK_WRITER) as guarded:
                future = pool.submit(sweep, store, NOTHING_KEPT, run, nothing_else_names, times=QUICK)
                assert still_waits(future)
                assert guarded.head(KEY) is not None, "the writer does not wait for one that came later"
            report = future.result(timeout=10)
        assert (report.deleted, report.spared) == ({}, 1), "what the writer found is pinned"

    def test_gives_way_to_a_writer_that_does_not_end(self, store: LocalStore) -> None:
        run = plan(store)
        times = SweepTimes(patience_seconds=0.1, poll_seconds=0.02)
        with writing(store, holder="a long commit"), pytest.raises(WritersBusyError, match="a long commit"):
            sweep(store, NOTHING_KEPT, run, nothing_else_names, times=times)
        assert open_markers(store) == []
        assert sweep(store, NOTHING_KEPT, run, nothing_else_names, times=QUICK).deleted["objects"].objects == 1

    def test_does_not_wait_for_a_writer_whose_lease_has_lapsed(self, store: LocalStore) -> None:
        run = plan(store)
        with writing(store, times=GuardTimes(lease_seconds=0.2)) as guarded:
            guarded._lease._heartbeat.end()
            assert sweep(store, NOTHING_KEPT, run, nothing_else_names, times=QUICK).deleted["objects"].objects == 1

    def test_does_not_wait_for_a_writer_that_knows_of_it(self, store: LocalStore) -> None:
        run = plan(store)
        with writing(store, holder="earlier"), sweep_under_way(store, run) as marker, writing(store, holder="later"):
            assert [who.partition(" ")[0] for who in writers_unaware_of(store, marker.key)] == ["earlier"]

    def test_waits_for_a_writer_that_knows_of_a_dead_one_only(self, store: LocalStore) -> None:
        run = plan(store)
        times = SweepTimes(patience_seconds=0.2, poll_seconds=0.02)
        with sweep_under_way(store, run, abandoned_seconds=0.01) as dead, writing(store) as guarded:
            dead.end()
            time.sleep(0.05)
            with pytest.raises(WritersBusyError):
                sweep(store, NOTHING_KEPT, run, nothing_else_names, times=times)
            assert guarded.head(KEY) is not None

    def test_leaves_a_plan_that_another_one_carries_out(self, store: LocalStore) -> None:
        run = plan(store)
        with sweep_under_way(store, run), pytest.raises(SweepRunningError, match=run):
            sweep(store, NOTHING_KEPT, run, nothing_else_names, times=QUICK)

    def test_takes_over_from_one_that_died(self, store: LocalStore) -> None:
        run = plan(store)
        with sweep_under_way(store, run, abandoned_seconds=0.1) as dead:
            dead.end()
            time.sleep(0.2)
            assert sweep(store, NOTHING_KEPT, run, nothing_else_names, times=QUICK).deleted["objects"].objects == 1
            assert open_markers(store) == []

    def test_that_stood_still_deletes_nothing_more(self, store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
        run = plan(store)
        monkeypatch.setattr(Heartbeat, "fresh", property(lambda _self: False))
        with pytest.raises(CollectorStoppedError, match="next try goes on"):
            sweep(store, NOTHING_KEPT, run, nothing_else_names, times=QUICK)
        assert store.head(KEY) is not None

    def test_spares_what_was_stored_again_since_the_plan(self, store: LocalStore) -> None:
        policy = NOTHING_KEPT.evolve(grace_days=2 / 86_400)
        time.sleep(2.1)
        run = plan_collection(store, policy, nothing_else_names, write=True).run
        store.put_blob(KEY, STRAY)
        assert sweep(store, policy, run, nothing_else_names, times=QUICK).spared == 1
        assert store.head(KEY) is not None


class TestHeartbeat:
    def test_covers_moments_until_it_could_be_taken_for_dead(self, store: LocalStore) -> None:
        beat = Heartbeat(store, f"{WRITERS}one", {}, seconds=10)
        beat.start()
        now = store_time(store)
        assert beat.covers(now)
        assert beat.covers(now + 8)
        assert not beat.covers(now + 9.5)
        beat.end()

    def test_a_gap_between_two_beats_is_remembered(self, store: LocalStore) -> None:
        beat = Heartbeat(store, f"{WRITERS}one", {}, seconds=0.2)
        beat._thread.run = lambda: None  # type: ignore[method-assign]
        beat.start()
        time.sleep(0.3)
        beat.beat()
        assert not beat.covers(0)
        assert not beat.fresh
        beat.end()
