"""Commits race with collections, and either is killed or stopped anywhere: what is named stays whole, always."""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fixtures_s3
import pytest
from fixtures_gc import NOTHING_KEPT, QUICK, age, commit, content, fill, is_whole, nothing_else_names
from test_dataset_killed import killed_before, scratch

from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.core.errors import TransientError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.data import DatasetRepository
from deepseek_ops.data.gc_guard import writing
from deepseek_ops.data.gc_history import RetentionPolicy
from deepseek_ops.data.gc_leases import GuardTimes
from deepseek_ops.data.gc_plan import plan_collection
from deepseek_ops.data.gc_runs import pending_runs
from deepseek_ops.data.gc_sweep import SweepTimes, sweep
from deepseek_ops.data.leases import pin

s3_server, s3_store, s3_uri = fixtures_s3.s3_server, fixtures_s3.s3_store, fixtures_s3.s3_uri

CONTENTS = 3
"""Different folders, committed again and again: what a collection drops is soon wanted again."""


def seconds_of_grace(seconds: float) -> RetentionPolicy:
    return NOTHING_KEPT.evolve(grace_days=seconds / 86_400)


def collect_once(store: ObjectStore, policy: RetentionPolicy, times: SweepTimes = QUICK) -> int:
    """Carry out the newest plan and make another; return how many objects were deleted."""
    deleted = 0
    for run in pending_runs(store)[-1:]:
        try:
            report = sweep(store, policy, run, nothing_else_names, times=times)
        except TransientError:
            continue
        deleted = sum(tally.objects for tally in report.deleted.values())
    plan_collection(store, policy, nothing_else_names, write=True)
    return deleted


def commit_often(store: ObjectStore, folders: list[Path], branch: str, commits: int) -> None:
    """Commit one folder after the other to a branch; each must be whole while it is the head."""
    numbers = random.Random(branch)  # noqa: S311
    for _ in range(commits):
        folder = numbers.choice(folders)
        shutil.rmtree(folder / ".deepseek-ops", ignore_errors=True)
        try:
            version = commit(store, folder, name=branch).version
        except TransientError:
            continue
        assert is_whole(store, version), f"{version} of {branch}"
        time.sleep(numbers.uniform(0, 0.3))


def race(
    store: ObjectStore, tmp_path: Path, *, writers: int, commits: int, grace: float, contents: int = CONTENTS
) -> int:
    """Let writers commit while collections go on; return how many objects were deleted meanwhile."""
    ended = threading.Event()
    deleted = [0]

    def collect_until_the_end() -> None:
        while not ended.is_set():
            deleted[0] += collect_once(store, seconds_of_grace(grace))

    with ThreadPoolExecutor(writers + 1) as pool:
        collecting = pool.submit(collect_until_the_end)
        jobs = []
        for number in range(writers):
            folders = [fill(tmp_path / f"w{number}-{seed}", seed, large=False) for seed in range(contents)]
            jobs.append(pool.submit(commit_often, store, folders, f"branch{number}", commits))
        try:
            for job in jobs:
                job.result()
        finally:
            ended.set()
            collecting.result()
    for number in range(writers):
        assert is_whole(store, f"branch{number}")
    return deleted[0]


def test_commits_race_with_collections_in_a_folder(tmp_path: Path) -> None:
    assert race(LocalStore(tmp_path / "store"), tmp_path, writers=3, commits=25, grace=0.3) > 10


@pytest.mark.slow
def test_commits_race_with_collections_on_s3(s3_store: ObjectStore, tmp_path: Path) -> None:
    assert race(s3_store, tmp_path, writers=3, commits=40, grace=2, contents=12) > 5


def tree_of(store: ObjectStore, name: str) -> str:
    repository = DatasetRepository(store)
    return repository.load(repository.resolve(name)).tree


def in_child(work: Callable[[], object]) -> int:
    """Start ``work`` in a child process and return its pid; the child's status is 0, or 75 for a TransientError."""
    child = os.fork()
    if child:
        return child
    try:
        work()
    except TransientError:
        os._exit(75)
    except BaseException:  # noqa: BLE001
        os._exit(1)
    os._exit(0)


def wait_for(child: int, *, flags: int = 0) -> int:
    return os.waitpid(child, flags)[1]


@pytest.mark.slow
def test_processes_that_commit_and_collect_are_killed_at_random(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    numbers = random.Random(5)  # noqa: S311
    policy = seconds_of_grace(0.5)
    dead = SweepTimes(marker_seconds=0.2, abandoned_seconds=0.4, patience_seconds=2, poll_seconds=0.02)
    killed = 0
    for number in range(CONTENTS):
        commit(store, fill(tmp_path / f"f{number}", number), name=f"branch{number}")
    for turn in range(40):
        folder, branch = tmp_path / f"f{turn % CONTENTS}", f"branch{numbers.randrange(CONTENTS)}"
        shutil.rmtree(folder / ".deepseek-ops", ignore_errors=True)

        def write(folder: Path = folder, branch: str = branch) -> None:
            with writing(store, times=GuardTimes(lease_seconds=0.5, wait_seconds=5, poll_seconds=0.02)) as guarded:
                commit(guarded, folder, name=branch)

        children = [in_child(write), in_child(lambda: collect_once(store, policy, dead))]
        time.sleep(numbers.uniform(0, 0.12))
        for child in children:
            if numbers.random() < 0.6:
                os.kill(child, signal.SIGKILL)
        statuses = [wait_for(child) for child in children]
        killed += sum(map(os.WIFSIGNALED, statuses))
        assert not any(os.WIFEXITED(status) and os.WEXITSTATUS(status) == 1 for status in statuses)
        for number in range(CONTENTS):
            assert is_whole(store, f"branch{number}"), f"turn {turn}"
    assert killed > 15
    time.sleep(1.2)
    for _ in range(3):
        collect_once(store, policy, dead)
        time.sleep(0.5)
    heads = {tree_of(store, f"branch{number}") for number in range(CONTENTS)}
    assert {key for key in content(store) if key.startswith("trees/")} >= {f"trees/{tree}" for tree in heads}
    assert len([key for key in content(store) if key.startswith("trees/")]) == 2 * len(heads), "the next try finishes"


@pytest.mark.slow
def test_a_collector_killed_before_any_of_its_changes_loses_nothing_and_the_next_one_finishes(tmp_path: Path) -> None:
    base = tmp_path / "base"
    old = commit(LocalStore(base), fill(tmp_path / "old", 1)).version
    head = commit(LocalStore(base), fill(tmp_path / "new", 2)).version
    time.sleep(0.02)
    run = plan_collection(LocalStore(base), NOTHING_KEPT, nothing_else_names, write=True).run
    dead = SweepTimes(marker_seconds=5, abandoned_seconds=0.05, poll_seconds=0.02)
    with scratch(base, tmp_path / "reference") as reference:
        sweep(LocalStore(reference), NOTHING_KEPT, run, nothing_else_names, times=dead)
        expected = content(LocalStore(reference))
    step = 0
    while True:
        with scratch(base, tmp_path / "store") as folder:
            store = LocalStore(folder)
            was_killed = killed_before(
                step,
                lambda: sweep(store, NOTHING_KEPT, run, nothing_else_names, times=dead),  # noqa: B023
            )
            assert is_whole(store, head)
            time.sleep(0.1)
            # Whatever is left of the old version, committing its content again gives a whole one.
            shutil.rmtree(tmp_path / "old" / ".deepseek-ops", ignore_errors=True)
            if step % 3 == 0:
                assert is_whole(store, commit(store, tmp_path / "old", name="other").version)
            else:
                sweep(store, NOTHING_KEPT, run, nothing_else_names, times=dead)
                assert content(store) == expected
        if not was_killed:
            break
        step += 1
    assert step > 10
    assert old != head


def stops_itself_before(prefix: str, folder: Path) -> LocalStore:
    """Return a store that stops its process, once, before it stores a key with this prefix."""

    class Stopping(LocalStore):
        stopped = False

        def _stop(self, key: str) -> None:
            if key.startswith(prefix) and not self.stopped:
                self.stopped = True
                os.kill(os.getpid(), signal.SIGSTOP)

        def create(self, key: str, data: bytes) -> None:
            self._stop(key)
            super().create(key, data)

        def put_blob(self, key: str, source: bytes | Path) -> None:
            self._stop(key)
            super().put_blob(key, source)

    return Stopping(folder)


def commit_stopped_before(prefix: str, folder: Path, source: Path) -> int:
    """Begin a commit in a child that stops before it stores such a key; return its pid once it stands still."""

    def work() -> None:
        times = GuardTimes(lease_seconds=0.5, wait_seconds=5, poll_seconds=0.02)
        with writing(stops_itself_before(prefix, folder), times=times) as guarded:
            commit(guarded, source)

    child = in_child(work)
    assert os.WIFSTOPPED(wait_for(child, flags=os.WUNTRACED))
    return child


def go_on(child: int) -> int:
    os.kill(child, signal.SIGCONT)
    status = wait_for(child)
    assert os.WIFEXITED(status)
    return os.WEXITSTATUS(status)


@pytest.mark.parametrize("prefix", ["trees/", "commits/"])
def test_a_writer_that_stood_still_while_its_packs_were_collected_publishes_nothing(
    tmp_path: Path, prefix: str
) -> None:
    store = LocalStore(tmp_path / "store")
    first = commit(store, fill(tmp_path / "v1", 1)).version
    child = commit_stopped_before(prefix, store.folder, fill(tmp_path / "v2", 2))
    time.sleep(1)  # longer than its lease, and than the grace
    policy = seconds_of_grace(0.5)
    collect_once(store, policy)
    assert collect_once(store, policy) > 0
    assert go_on(child) == 75, "it noticed"
    assert DatasetRepository(store).resolve("corpus") == first
    assert is_whole(store, "corpus")
    shutil.rmtree(tmp_path / "v2" / ".deepseek-ops", ignore_errors=True)
    assert is_whole(store, commit(store, tmp_path / "v2").version), "the next try finishes"


@pytest.mark.parametrize("prefix", ["trees/", "commits/", "refs/heads/"])
def test_a_writer_that_stood_still_and_lost_nothing_publishes(tmp_path: Path, prefix: str) -> None:
    store = LocalStore(tmp_path / "store")
    commit(store, fill(tmp_path / "v1", 1))
    child = commit_stopped_before(prefix, store.folder, fill(tmp_path / "v2", 2))
    time.sleep(1)  # longer than its lease, shorter than the grace
    policy = seconds_of_grace(60)
    collect_once(store, policy)
    collect_once(store, policy)
    assert go_on(child) == 0
    assert len(DatasetRepository(store).log("corpus")) == 2
    assert is_whole(store, "corpus")


def left_by_a_commit_that_died(store: LocalStore, source: Path) -> None:
    """Leave packs and pages of a folder in the store, a day old, which the folder's stat cache remembers."""
    time.sleep(0.2)  # files as young as the scan are read again
    child = commit_stopped_before("commits/", store.folder, source)
    os.kill(child, signal.SIGKILL)
    wait_for(child)
    assert len(list(store.list("packs/"))) == 1
    for prefix in ("packs/", "trees/", "objects/", "leases/"):
        age(store, 1, prefix=prefix)


def test_what_a_commit_found_and_announced_stays_while_it_stands_still(tmp_path: Path) -> None:
    store, source = LocalStore(tmp_path / "store"), fill(tmp_path / "v1", 1)
    left_by_a_commit_that_died(store, source)
    policy = seconds_of_grace(60)
    collect_once(store, policy)
    child = commit_stopped_before("refs/heads/", store.folder, source)
    time.sleep(1)  # longer than its lease
    assert collect_once(store, policy) == 0
    assert go_on(child) == 0
    assert is_whole(store, "corpus")


def test_what_a_commit_found_stays_while_its_lease_holds(tmp_path: Path) -> None:
    store, source = LocalStore(tmp_path / "store"), fill(tmp_path / "v1", 1)
    left_by_a_commit_that_died(store, source)
    policy = seconds_of_grace(60)
    collect_once(store, policy)
    reached, go = threading.Event(), threading.Event()

    class Slow(LocalStore):
        def put_blob(self, key: str, source: bytes | Path) -> None:
            if key.startswith("commits/"):
                reached.set()
                go.wait(20)
            super().put_blob(key, source)

    with ThreadPoolExecutor(1) as pool:
        committing = pool.submit(commit, Slow(store.folder), source)
        assert reached.wait(20)
        impatient = SweepTimes(patience_seconds=0.3, poll_seconds=0.02)
        assert collect_once(store, policy, impatient) == 0
        go.set()
        assert is_whole(store, committing.result(timeout=20).version)
    assert collect_once(store, policy) == 0


def test_a_commit_that_says_what_a_dropped_one_said_waits_for_its_deletion(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    commit(store, fill(tmp_path / "v1", 1))
    commit(store, fill(tmp_path / "v2", 2))
    time.sleep(0.02)
    run = plan_collection(store, NOTHING_KEPT, nothing_else_names, write=True).run
    begun, go = threading.Event(), threading.Event()

    def names_slowly() -> object:
        begun.set()
        go.wait(10)
        return nothing_else_names()

    with ThreadPoolExecutor(2) as pool:
        sweeping = pool.submit(sweep, store, NOTHING_KEPT, run, names_slowly, times=QUICK)  # type: ignore[arg-type]
        begun.wait(10)
        committing = pool.submit(commit, store, tmp_path / "v1", name="other")
        time.sleep(0.5)
        assert not committing.done()
        go.set()
        assert sweeping.result(timeout=20).deleted["packs"].objects == 1
        assert is_whole(store, committing.result(timeout=20).version)


def test_a_pinned_reader_keeps_what_retention_drops(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    old = commit(store, fill(tmp_path / "v1", 1)).version
    held = pin(store, old, holder="a checkout", seconds=30)
    commit(store, fill(tmp_path / "v2", 2))
    for _ in range(3):
        time.sleep(0.02)
        collect_once(store, NOTHING_KEPT)
    DatasetRepository(store).checkout(old, tmp_path / "out")
    held.release()
    assert (tmp_path / "out" / "0.bin").read_bytes() == (tmp_path / "v1" / "0.bin").read_bytes()
