"""The shared cache: links, limits, poison, kills, and eight processes at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fixtures_datasets
import fixtures_s3
import pytest
from fixtures_datasets import CountingStore, commit, contents, fill

from deepseek_ops.adapters.stores import open_store
from deepseek_ops.core.errors import IntegrityError, ObjectNotFoundError
from deepseek_ops.data import (
    CACHE_SIZE_VARIABLE,
    CACHE_VARIABLE,
    DatasetRepository,
    NoSuchSplitError,
    NothingSelectedError,
    ObjectCache,
    TargetNotEmptyError,
    Worktree,
    materialise,
)
from deepseek_ops.data.cache import CacheSizeError
from deepseek_ops.data.layout import blob_key

folder, local, store = fixtures_datasets.folder, fixtures_datasets.local, fixtures_datasets.store
s3_server, s3_store, s3_uri = fixtures_s3.s3_server, fixtures_s3.s3_store, fixtures_s3.s3_uri


def cached(cache: Path) -> dict[str, int]:
    """Return name -> size of what a cache holds."""
    return {path.name: path.stat().st_size for path in (cache / "objects").rglob("*") if path.is_file()}


class TestMaterialise:
    @pytest.mark.parametrize("mode", ["auto", "hardlink", "reflink", "copy"])
    def test_the_second_folder_needs_no_bytes_from_the_store(
        self, store: CountingStore, folder: Path, tmp_path: Path, mode: str
    ) -> None:
        commit(store, folder)
        cache = ObjectCache(tmp_path / "cache")
        first = materialise(store, "corpus", tmp_path / "one", cache=cache, mode=mode)  # type: ignore[arg-type]
        store.gets.clear()
        second = materialise(store, "corpus", tmp_path / "two", cache=cache, mode=mode)  # type: ignore[arg-type]
        assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(folder)
        assert (first.hits, first.fetched, second.hits, second.fetched) == (0, 43, 43, 0)
        assert not [key for key in store.gets if key.startswith(("packs/", "objects/"))]
        links = (tmp_path / "one" / "part0" / "0000.bin").stat().st_nlink
        assert (links == 3) is (mode == "hardlink" or "hardlink" in second.ways)

    def test_without_a_cache_it_is_a_plain_folder(self, store: CountingStore, folder: Path, tmp_path: Path) -> None:
        commit(store, folder)
        report = materialise(store, "corpus", tmp_path / "out")
        assert contents(tmp_path / "out") == contents(folder)
        assert (report.num_files, report.num_bytes) == (43, sum(map(len, contents(folder).values())))

    def test_doing_it_twice_changes_nothing(self, local: CountingStore, folder: Path, tmp_path: Path) -> None:
        commit(local, folder)
        materialise(local, "corpus", tmp_path / "out", patterns=("part0/*",))
        inode = (tmp_path / "out" / "part0" / "0000.bin").stat().st_ino
        again = materialise(local, "corpus", tmp_path / "out", patterns=("part0/*",))
        assert (again.present, again.num_files) == (True, 14)
        assert (tmp_path / "out" / "part0" / "0000.bin").stat().st_ino == inode
        with pytest.raises(TargetNotEmptyError):
            materialise(local, "corpus", tmp_path / "out")
        (tmp_path / "out" / "part0" / "0000.bin").write_bytes(b"changed")
        with pytest.raises(TargetNotEmptyError):
            materialise(local, "corpus", tmp_path / "out", patterns=("part0/*",))

    def test_a_split_comes_alone(self, store: CountingStore, folder: Path, tmp_path: Path) -> None:
        commit(store, folder, split_of=lambda path: {"part0": "train", "part1": "test"}.get(path[:5], ""))
        materialise(store, "corpus", tmp_path / "train", splits=("train",))
        assert {name[:5] for name in contents(tmp_path / "train")} == {"part0"}
        materialise(store, "corpus", tmp_path / "both", splits=("train", "test"), patterns=("*/000*",))
        assert {name[:5] for name in contents(tmp_path / "both")} == {"part0", "part1"}
        with pytest.raises(NoSuchSplitError, match="test, train"):
            materialise(store, "corpus", tmp_path / "val", splits=("val",))
        with pytest.raises(NothingSelectedError):
            materialise(store, "corpus", tmp_path / "val", patterns=("none/*",))
        assert not (tmp_path / "val").exists()

    def test_damaged_bytes_never_get_into_the_cache(self, local: CountingStore, folder: Path, tmp_path: Path) -> None:
        commit(local, folder)
        root = Path(local.uri.removeprefix("file://"))
        large = next(path for path in (root / "objects").rglob("*") if path.is_file())
        large.write_bytes(b"x" * large.stat().st_size)
        with pytest.raises(IntegrityError, match=r"weights\.bin"):
            materialise(local, "corpus", tmp_path / "out", cache=ObjectCache(tmp_path / "cache"))
        assert not (tmp_path / "out").exists()
        assert large.name not in cached(tmp_path / "cache")
        assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []


class TestPoison:
    def poison(self, path: Path, *, keep_time: bool) -> None:
        """Write through a hard link, as somebody with rights can."""
        before = path.stat()
        path.chmod(0o644)
        data = bytearray(path.read_bytes())
        data[0] ^= 1
        with path.open("r+b") as file:
            file.write(data)
        path.chmod(0o444)
        if keep_time:
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def test_a_linked_file_is_read_only(self, local: CountingStore, folder: Path, tmp_path: Path) -> None:
        commit(local, folder)
        materialise(local, "corpus", tmp_path / "one", cache=ObjectCache(tmp_path / "cache"), mode="hardlink")
        assert (tmp_path / "one" / "weights.bin").stat().st_mode & 0o222 == 0

    @pytest.mark.parametrize("keep_time", [False, True])
    def test_a_write_through_a_link_reaches_no_other_folder(
        self, local: CountingStore, folder: Path, tmp_path: Path, keep_time: bool
    ) -> None:
        commit(local, folder)
        cache = ObjectCache(tmp_path / "cache")
        materialise(local, "corpus", tmp_path / "one", cache=cache, mode="hardlink")
        self.poison(tmp_path / "one" / "weights.bin", keep_time=keep_time)
        policy = "all" if keep_time else "none"
        again = materialise(local, "corpus", tmp_path / "two", cache=cache, mode="hardlink", verify=policy)
        assert contents(tmp_path / "two") == contents(folder)
        assert (again.dropped, again.fetched) == (1, 1)
        third = materialise(local, "corpus", tmp_path / "three", cache=cache, mode="hardlink", verify=policy)
        assert third.dropped == 0

    def test_a_cut_file_is_fetched_again(self, local: CountingStore, folder: Path, tmp_path: Path) -> None:
        commit(local, folder)
        cache = ObjectCache(tmp_path / "cache")
        materialise(local, "corpus", tmp_path / "one", cache=cache, mode="copy")
        victim = max((tmp_path / "cache" / "objects").rglob("*"), key=lambda path: path.stat().st_size)
        victim.chmod(0o644)
        victim.write_bytes(b"")
        os.utime(victim, ns=(0, 1_000_000_000 * 10**9))
        materialise(local, "corpus", tmp_path / "two", cache=cache, mode="copy", verify="none")
        assert contents(tmp_path / "two") == contents(folder)


class TestLimit:
    def test_what_was_used_longest_ago_goes_first(self, local: CountingStore, tmp_path: Path) -> None:
        for name in "abc":
            (tmp_path / name).mkdir()
            (tmp_path / name / name).write_bytes(name.encode() * 1000)
            commit(local, tmp_path / name, name=name)
        cache = ObjectCache(tmp_path / "cache", max_bytes=2000)
        for turn, name in enumerate("aba"):
            materialise(local, name, tmp_path / f"{turn}", cache=cache, mode="copy")
            for path in (tmp_path / "cache" / "objects").rglob("*"):  # an hour passes
                status = path.stat()
                os.utime(path, ns=(status.st_atime_ns - 3600 * 10**9, status.st_mtime_ns))
        assert len(cached(tmp_path / "cache")) == 2
        materialise(local, "c", tmp_path / "c-out", cache=cache, mode="copy")
        assert sum(cached(tmp_path / "cache").values()) == 2000
        again = materialise(local, "a", tmp_path / "a-out", cache=cache, mode="copy")
        assert again.hits == 1, "b was used before a"

    def test_what_folders_are_linked_to_stays_and_does_not_count(
        self, local: CountingStore, folder: Path, tmp_path: Path
    ) -> None:
        commit(local, folder)
        cache = ObjectCache(tmp_path / "cache", max_bytes=1000)
        materialise(local, "corpus", tmp_path / "one", cache=cache, mode="hardlink")
        assert len(cached(tmp_path / "cache")) == len(set(contents(folder).values()))
        assert materialise(local, "corpus", tmp_path / "two", cache=cache, mode="hardlink").fetched == 0

    def test_more_than_fits_still_comes_whole(self, local: CountingStore, folder: Path, tmp_path: Path) -> None:
        commit(local, folder)
        cache = ObjectCache(tmp_path / "cache", max_bytes=5000)
        materialise(local, "corpus", tmp_path / "one", cache=cache, mode="copy")
        assert contents(tmp_path / "one") == contents(folder)
        assert sum(cached(tmp_path / "cache").values()) <= 5000

    def test_its_place_and_size_come_from_variables(self, tmp_path: Path) -> None:
        assert ObjectCache.from_environment({}) is None
        cache = ObjectCache.from_environment({CACHE_VARIABLE: str(tmp_path), CACHE_SIZE_VARIABLE: "3 GiB"})
        assert cache is not None
        assert cache.max_bytes == 3 << 30
        with pytest.raises(CacheSizeError, match="much"):
            ObjectCache.from_environment({CACHE_VARIABLE: str(tmp_path), CACHE_SIZE_VARIABLE: "much"})


CHILD = """
import os, signal, sys
from pathlib import Path
from deepseek_ops.adapters.stores import open_store
from deepseek_ops.data import ObjectCache, materialise
import deepseek_ops.data.cache as module
store, cache, target, mode, limit, die_after, turns, versions = sys.argv[1:]
left = [int(die_after)]
if left[0] >= 0:
    real = os.rename
    def rename(*arguments):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)
    module.os.rename = rename
for turn in range(int(turns)):
    version = versions.split(",")[turn % len(versions.split(","))]
    shared = ObjectCache(Path(cache), max_bytes=int(limit))
    materialise(open_store(store), version, Path(f"{target}-{turn}"), cache=shared, mode=mode, verify="all")
"""


def child(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CHILD, *map(str, arguments)], stderr=subprocess.PIPE)


class TestProcesses:
    @pytest.mark.parametrize("step", [0, 20, 42])
    def test_a_killed_one_leaves_a_valid_cache_and_no_target(
        self, local: CountingStore, folder: Path, tmp_path: Path, step: int
    ) -> None:
        commit(local, folder)
        arguments = (local.uri, tmp_path / "cache", tmp_path / "out", "hardlink", 10**9, step, 1, "corpus")
        process = child(*arguments)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / "out-0").exists()
        cache = ObjectCache(tmp_path / "cache")
        report = materialise(local, "corpus", tmp_path / "out-0", cache=cache, mode="hardlink", verify="all")
        assert contents(tmp_path / "out-0") == contents(folder)
        assert report.dropped == 0
        assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".part")] == []
        assert list((tmp_path / "cache" / "scratch").iterdir()) == []

    @pytest.mark.slow
    @pytest.mark.parametrize("mode", ["hardlink", "copy"])
    def test_eight_share_one_that_is_too_small(self, local: CountingStore, tmp_path: Path, mode: str) -> None:
        expected = {}
        for seed in range(3):
            source = tmp_path / f"source{seed}"
            source.mkdir()
            fill(source, files=60, seed=seed)
            expected[f"v{seed}"] = contents(source)
            commit(local, source, branch=f"b{seed}")
            DatasetRepository(local).tag(f"v{seed}", f"corpus@b{seed}")
        versions = ["v0,v1,v2", "v1,v2,v0", "v2,v0,v1"]
        limit = 1_200_000
        running = [
            child(local.uri, tmp_path / "cache", tmp_path / f"out{n}", mode, limit, -1, 3, versions[n % 3])
            for n in range(8)
        ]
        time.sleep(1.5)
        running[7].kill()
        for number, process in enumerate(running):
            error = process.communicate(timeout=240)[1]
            assert process.returncode == (-signal.SIGKILL if number == 7 else 0), error.decode()
        for number in range(7):
            for turn in range(3):
                target = tmp_path / f"out{number}-{turn}"
                assert contents(target) == expected[versions[number % 3].split(",")[turn]]
                assert Worktree(target).record().version is not None
        ObjectCache(tmp_path / "cache", max_bytes=limit).trim()
        held = [path for path in (tmp_path / "cache" / "objects").rglob("*") if path.is_file()]
        assert sum(path.stat().st_size for path in held if path.stat().st_nlink == 1) <= limit
        cache = ObjectCache(tmp_path / "cache", max_bytes=limit)
        last = materialise(local, "v0", tmp_path / "last", cache=cache, mode=mode, verify="all")  # type: ignore[arg-type]
        assert last.dropped == 0
        assert contents(tmp_path / "last") == expected["v0"]

    def test_of_two_that_want_the_same_one_fetches_it(self, local: CountingStore, folder: Path, tmp_path: Path) -> None:
        commit(local, folder)
        two = [
            child(local.uri, tmp_path / "cache", tmp_path / f"out{n}", "hardlink", 10**9, -1, 1, "corpus")
            for n in range(2)
        ]
        for process in two:
            assert process.communicate(timeout=60)[1] == b""
        assert contents(tmp_path / "out0-0") == contents(tmp_path / "out1-0") == contents(folder)
        assert (tmp_path / "out0-0" / "weights.bin").stat().st_nlink == 3


def test_an_object_that_is_gone_is_named(local: CountingStore, folder: Path, tmp_path: Path) -> None:
    commit(local, folder)
    digest = next(file.entry.digest.hex() for file in DatasetRepository(local).files("corpus", ("weights.bin",)))
    open_store(local.uri).delete([blob_key(digest)])
    with pytest.raises(ObjectNotFoundError, match=digest):
        materialise(local, "corpus", tmp_path / "out", cache=ObjectCache(tmp_path / "cache"))
