"""Locks in the store: one holder a file, whatever happens at once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deepseek_ops.adapters.git_lfs.locks import KEPT, LOCKS, Locks
from deepseek_ops.adapters.git_lfs.problems import LfsRequestError
from deepseek_ops.adapters.stores import open_store
from deepseek_ops.core.ports import ObjectInfo, ObjectStore


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def locks(store: ObjectStore) -> Locks:
    return Locks(store, now=lambda: 1_800_000_000)


def test_a_lock_is_shown_as_the_protocol_wants_it(locks: Locks) -> None:
    lock = locks.create("m", "dir/a.bin", "ada")
    assert lock.public() == {
        "id": lock.id,
        "path": "dir/a.bin",
        "locked_at": "2027-01-15T08:00:00Z",
        "owner": {"name": "ada"},
    }
    assert locks.find("m").locks == (lock,)


def test_a_second_lock_of_a_file_is_a_conflict_that_shows_the_first(locks: Locks) -> None:
    first = locks.create("m", "a", "ada")
    with pytest.raises(LfsRequestError) as conflict:
        locks.create("m", "a", "bob")
    assert (conflict.value.status, conflict.value.extra["lock"]) == (409, first.public())


def test_only_its_owner_gives_a_lock_back_unless_forced(locks: Locks) -> None:
    lock = locks.create("m", "a", "ada")
    with pytest.raises(LfsRequestError) as refused:
        locks.release("m", lock.id, "bob", force=False)
    assert refused.value.status == 403
    assert locks.release("m", lock.id, "bob", force=True) == lock
    with pytest.raises(LfsRequestError) as gone:
        locks.release("m", lock.id, "ada", force=False)
    assert gone.value.status == 404


def test_an_old_id_does_not_unlock_a_later_lock(locks: Locks) -> None:
    old = locks.create("m", "a", "ada")
    locks.release("m", old.id, "ada", force=False)
    new = locks.create("m", "a", "bob")
    assert new.id != old.id
    with pytest.raises(LfsRequestError):
        locks.release("m", old.id, "ada", force=True)
    assert locks.find("m").locks == (new,)


@pytest.mark.parametrize("lock_id", ["", "x", "../..", f"{'a' * 32}-1", f"{'a' * 32}-99999999999"])
def test_an_id_that_never_was_is_not_found(locks: Locks, lock_id: str) -> None:
    with pytest.raises(LfsRequestError) as gone:
        locks.release("m", lock_id, "ada", force=True)
    assert gone.value.status == 404


@pytest.mark.parametrize("path", ["", "/abs", "a/../b", "a//b", "./a", "a\0b", "a\nb", "x" * 5000, "\ud800"])
def test_a_path_that_is_none_cannot_be_locked(locks: Locks, path: str) -> None:
    with pytest.raises(LfsRequestError) as refused:
        locks.create("m", path, "ada")
    assert refused.value.status == 422


def test_pages_show_every_held_lock_once(locks: Locks) -> None:
    held = {locks.create("m", f"file {n}", "ada").id for n in range(23)}
    for n in range(20, 23):
        lock = locks.find("m", path=f"file {n}").locks[0]
        locks.release("m", lock.id, "ada", force=False)
        held.remove(lock.id)
    seen: list[str] = []
    cursor = ""
    while True:
        page = locks.find("m", cursor=cursor, limit=7)
        seen += [lock.id for lock in page.locks]
        cursor = page.next_cursor
        if not cursor:
            break
    assert sorted(seen) == sorted(held)


def test_a_search_by_path_or_id_finds_that_lock_alone(locks: Locks) -> None:
    a, b = locks.create("m", "a", "ada"), locks.create("m", "b", "bob")
    assert locks.find("m", path="a").locks == (a,)
    assert locks.find("m", lock_id=b.id).locks == (b,)
    for missing in ({"path": "c"}, {"lock_id": "zzz"}, {"path": "a", "lock_id": b.id}):
        assert locks.find("m", **missing).locks == ()
    with pytest.raises(LfsRequestError):
        locks.find("m", cursor="../x")


def test_repositories_do_not_see_each_others_locks(locks: Locks) -> None:
    below = locks.create("team/model", "a", "ada")
    above = locks.create("team", "a", "bob")
    assert locks.find("team").locks == (above,)
    assert locks.find("team/model").locks == (below,)


def test_a_file_leaves_a_few_small_objects_however_often_it_was_locked(locks: Locks, store: ObjectStore) -> None:
    for _ in range(20):
        lock = locks.create("m", "a", "ada")
        locks.release("m", lock.id, "ada", force=False)
    assert len(list(store.list(LOCKS))) == KEPT
    assert locks.find("m").locks == ()


def test_of_many_people_one_holds_the_lock_at_any_time(store: ObjectStore) -> None:
    holders: set[str] = set()
    most, taken, guard = [0], [0], threading.Lock()

    def work(name: str) -> None:
        mine = Locks(store)
        for _ in range(15):
            try:
                lock = mine.create("m", "a", name)
            except LfsRequestError:  # somebody else has it
                continue
            with guard:
                holders.add(name)
                most[0], taken[0] = max(most[0], len(holders)), taken[0] + 1
            assert mine.find("m", path="a").locks == (lock,)
            with guard:
                holders.remove(name)
            assert mine.release("m", lock.id, name, force=False) == lock

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, "abcdef"))
    assert taken[0] >= 1
    assert most[0] == 1


class _Stalled:
    """A store whose first create waits until others have locked and unlocked in between."""

    def __init__(self, store: ObjectStore, meanwhile: list[object]) -> None:
        self.uri = store.uri
        self._store = store
        self._meanwhile = meanwhile

    def create(self, key: str, data: bytes) -> None:
        if self._meanwhile:
            self._meanwhile.pop()()  # type: ignore[operator]
        self._store.create(key, data)

    def list(self, prefix: str, *, start_after: str = "", limit: int | None = None) -> Iterator[ObjectInfo]:
        return self._store.list(prefix, start_after=start_after, limit=limit)

    def __getattr__(self, name: str) -> object:
        return getattr(self._store, name)


def test_a_lock_that_is_taken_again_at_once_was_given_back_all_the_same(store: ObjectStore) -> None:
    others = Locks(store)
    lock = others.create("m", "a", "ada")

    class Quick(_Stalled):
        def create(self, key: str, data: bytes) -> None:
            super().create(key, data)
            others.create("m", "a", "bob")

    assert Locks(Quick(store, [])).release("m", lock.id, "ada", force=False) == lock
    assert [held.owner for held in others.find("m").locks] == ["bob"]


def test_whoever_was_slow_does_not_get_a_lock_below_the_newest_entry(store: ObjectStore) -> None:
    others = Locks(store)

    def come_and_go() -> None:
        for _ in range(KEPT):
            lock = others.create("m", "a", "bob")
            others.release("m", lock.id, "bob", force=False)
        others.create("m", "a", "carol")

    slow = Locks(_Stalled(store, [come_and_go]))
    with pytest.raises(LfsRequestError) as conflict:
        slow.create("m", "a", "ada")
    assert conflict.value.status == 409
    assert [lock.owner for lock in others.find("m").locks] == ["carol"]
