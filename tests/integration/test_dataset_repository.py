"""Dataset versions on a folder and on a real S3 server: what comes back, who wins, what is noticed."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import fixtures_datasets
import fixtures_s3
import pytest
from fixtures_datasets import CountingStore, age, commit, contents, fill

from deepseek_ops.adapters.stores import open_store
from deepseek_ops.core.errors import IntegrityError, ObjectExistsError
from deepseek_ops.data import (
    BranchMovedError,
    DatasetRepository,
    InvalidNameError,
    NothingSelectedError,
    TagMovedError,
    UnknownFormatError,
    UnsafeStoreError,
    VersionNotFoundError,
)
from deepseek_ops.data import pages as pages_module
from deepseek_ops.data.refs import RefLog

folder, local, store = fixtures_datasets.folder, fixtures_datasets.local, fixtures_datasets.store
s3_server, s3_store, s3_uri = fixtures_s3.s3_server, fixtures_s3.s3_store, fixtures_s3.s3_uri


class TestVersions:
    def test_a_version_comes_back_byte_for_byte(self, store: CountingStore, folder: Path, tmp_path: Path) -> None:
        version = commit(store, folder, lineage={"raw": "abc"}, splits={"train": 3})
        repository = DatasetRepository.open(store)
        repository.checkout(version.version, tmp_path / "out")
        assert contents(tmp_path / "out") == contents(folder)
        assert (version.num_files, version.num_bytes) == (43, sum(map(len, contents(folder).values())))
        assert version.splits == {"train": 3}
        assert repository.describe(version.version)["lineage"] == {"raw": "abc"}
        assert repository.load(version.version) == version
        assert repository.verify("corpus").problems == ()

    def test_small_files_travel_in_packs(self, store: CountingStore, folder: Path) -> None:
        commit(store, folder)
        kinds = [key.partition("/")[0] for key in store.puts]
        kinds = [kind for kind in kinds if kind not in ("probe", "store.json", "leases")]
        assert sorted(kinds[:2]) == ["objects", "packs"]
        assert kinds[2:] == ["trees", "trees", "commits", "refs"], "what names something goes up after it"

    def test_an_equal_folder_is_an_equal_tree_wherever_it_was_made(
        self, store: CountingStore, folder: Path, tmp_path: Path
    ) -> None:
        version = commit(store, folder)
        DatasetRepository(store).checkout("corpus", tmp_path / "again")
        elsewhere = commit(CountingStore(open_store(str(tmp_path / "elsewhere"))), tmp_path / "again", message="other")
        assert elsewhere.tree == version.tree
        assert elsewhere.version != version.version

    def test_committing_again_changes_nothing(self, store: CountingStore, folder: Path) -> None:
        age(folder)
        first = commit(store, folder)
        store.puts.clear()
        assert commit(store, folder, message="retried") == first
        assert [key for key in store.puts if not key.startswith("trees/")] == []
        assert len(DatasetRepository(store).log("corpus")) == 1

    def test_a_new_version_sends_what_is_new(
        self, store: CountingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pages_module, "CUT_MASK", 63)  # many pages without many files
        source = tmp_path / "big"
        fill(source, files=300, large=True)
        age(source)
        first = commit(store, source)
        pages = sum(key.startswith("trees/") for key in store.puts)
        assert pages > 3
        (source / "part1" / "0001.bin").write_bytes(b"changed")
        (source / "part0" / "0003.bin").unlink()
        (source / "part2" / "new.bin").write_bytes(b"new")
        store.puts.clear()
        store.gets.clear()
        second = commit(store, source)
        sent = [key.partition("/")[0] for key in store.puts]
        assert sent.count("packs") == 1
        assert sent.count("objects") == 0
        assert sent.count("trees") <= 5
        assert not [key for key in store.gets if key.startswith(("packs/", "objects/"))]
        changes = DatasetRepository(store).diff(first.version, second.version)
        assert changes.added == ("part2/new.bin",)
        assert changes.removed == ("part0/0003.bin",)
        assert changes.modified == ("part1/0001.bin",)
        DatasetRepository(store).checkout("corpus", tmp_path / "out")
        assert contents(tmp_path / "out") == contents(source)

    def test_comparing_reads_only_what_differs(
        self, store: CountingStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pages_module, "CUT_MASK", 63)
        source = tmp_path / "big"
        fill(source, files=300, large=False)
        first = commit(store, source)
        (source / "empty").unlink()
        second = commit(store, source)
        store.gets.clear()
        assert DatasetRepository(store).diff(first.version, second.version).removed == ("empty",)
        assert sum(key.startswith("trees/") for key in store.gets) == 4  # two roots, two pages

    def test_changes_that_keep_size_and_time_of_a_fresh_file_are_seen(
        self, local: CountingStore, tmp_path: Path
    ) -> None:
        (tmp_path / "a").mkdir()
        path = tmp_path / "a" / "file"
        path.write_bytes(b"1")
        status = path.stat()
        first = commit(local, tmp_path / "a")
        path.write_bytes(b"2")
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert commit(local, tmp_path / "a").tree != first.tree

    def test_unchanged_files_are_not_read(
        self, local: CountingStore, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        age(folder)
        first = commit(local, folder)
        opened: list[str] = []
        real = os.open

        def watched(path: str, *arguments: int) -> int:
            opened.append(str(path))
            return real(path, *arguments)

        monkeypatch.setattr(os, "open", watched)
        assert commit(local, folder) == first
        assert not [path for path in opened if path.startswith(f"{folder}/part") and path.endswith(".bin")]
        (folder / "part1" / "0001.bin").write_bytes(b"other")
        commit(local, folder)
        assert [path for path in opened if path.endswith(".bin")] == [f"{folder}/part1/0001.bin"]

    def test_a_damaged_stat_cache_costs_time_only(self, local: CountingStore, folder: Path) -> None:
        age(folder)
        first = commit(local, folder)
        cache = folder / ".deepseek-ops" / "stat-cache"
        cache.write_bytes(cache.read_bytes()[:-1] + b"!")
        assert commit(local, folder) == first

    def test_the_cache_of_one_store_serves_another(self, local: CountingStore, folder: Path, tmp_path: Path) -> None:
        age(folder)
        first = commit(local, folder)
        other = CountingStore(open_store(str(tmp_path / "other")))
        assert commit(other, folder).tree == first.tree
        assert DatasetRepository(other).verify("corpus").problems == ()

    def test_a_part_comes_back_by_pattern(self, store: CountingStore, folder: Path, tmp_path: Path) -> None:
        commit(store, folder)
        repository = DatasetRepository(store)
        repository.checkout("corpus", tmp_path / "out", patterns=("part1/*", "gr*.txt"))
        wanted = {k: v for k, v in contents(folder).items() if k.startswith("part1/") or k == "größe.txt"}
        assert contents(tmp_path / "out") == wanted
        assert repository.paths("corpus", patterns=("part1/*", "gr*.txt")) == sorted(wanted)
        with pytest.raises(NothingSelectedError, match="nothing/like/this"):
            repository.checkout("corpus", tmp_path / "none", patterns=("nothing/like/this",))
        assert not (tmp_path / "none").exists()

    def test_splits_are_part_of_a_version(self, local: CountingStore, folder: Path) -> None:
        plain = commit(local, folder)
        split = commit(local, folder, split_of=lambda path: "train" if path.startswith("part0") else "")
        changes = DatasetRepository(local).diff(plain.version, split.version)
        assert changes.modified
        assert all(path.startswith("part0/") for path in changes.modified)


class TestNames:
    def test_names_lead_to_versions(self, store: CountingStore, folder: Path) -> None:
        first = commit(store, folder, message="one")
        repository = DatasetRepository(store)
        repository.tag("dataset-v1.0", "corpus")
        (folder / "more").write_bytes(b"more")
        second = commit(store, folder, message="two")
        branch = commit(store, folder, branch="exp/first", message="three", lineage={"try": 1}, parent=second.version)
        assert repository.resolve("corpus") == repository.resolve("corpus@main") == second.version
        assert repository.resolve("dataset-v1.0") == repository.resolve(first.version[:12]) == first.version
        assert repository.resolve("corpus@exp/first") == branch.version
        assert [entry.message for entry in repository.log("corpus")] == ["two", "one"]
        assert [entry.version for entry in repository.log("corpus", limit=1)] == [second.version]
        assert repository.describe(branch.version)["parents"] == [second.version]

    def test_a_tag_never_moves(self, store: CountingStore, folder: Path) -> None:
        first = commit(store, folder)
        repository = DatasetRepository(store)
        assert repository.tag("v1", first.version) == repository.tag("v1", "corpus") == first.version
        (folder / "more").write_bytes(b"more")
        second = commit(store, folder)
        with pytest.raises(TagMovedError, match=second.version):
            repository.tag("v1", "corpus")
        assert repository.resolve("v1") == first.version

    @pytest.mark.parametrize("name", ["nothing", "corpus@none", "f" * 64, "deadbeef00", "a/b", "../x", ""])
    def test_unknown_names_are_named(self, store: CountingStore, name: str) -> None:
        with pytest.raises(VersionNotFoundError):
            DatasetRepository(store).resolve(name)

    @pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "a b"])
    def test_names_are_plain(self, local: CountingStore, folder: Path, name: str) -> None:
        with pytest.raises(InvalidNameError):
            commit(local, folder, name=name)
        with pytest.raises(InvalidNameError):
            DatasetRepository(local).tag(name, commit(local, folder).version)

    def test_a_history_that_was_altered_is_noticed(self, local: CountingStore, folder: Path) -> None:
        for number in range(3):
            (folder / "number").write_text(str(number))
            commit(local, folder)
        middle = list(local.list("refs/heads/corpus/main/"))[1].key
        body = json.loads(local.get(middle))
        local.delete([middle])
        local.create(middle, json.dumps({**body, "at": "2000-01-01T00:00:00+00:00"}).encode())
        with pytest.raises(IntegrityError, match="corpus@main"):
            DatasetRepository(local).log("corpus")


class TestWriters:
    def test_of_racing_writers_all_commit_one_after_the_other(self, store: CountingStore, tmp_path: Path) -> None:
        DatasetRepository.open(store)

        def write(number: int) -> str:
            source = tmp_path / f"w{number}"
            source.mkdir()
            (source / "file").write_text(f"{number}")
            return commit(store, source, message=str(number)).version

        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(write, range(8)))
        repository = DatasetRepository(store)
        log = repository.log("corpus")
        assert sorted(entry.version for entry in log) == sorted(made)
        for child, parent in pairwise(log):
            assert repository.describe(child.version)["parents"] == [parent.version]

    def test_of_racing_writers_with_one_parent_exactly_one_wins(self, store: CountingStore, tmp_path: Path) -> None:
        base = tmp_path / "base"
        base.mkdir()
        (base / "file").write_text("base")
        start = commit(store, base)

        def write(number: int) -> str | None:
            source = tmp_path / f"w{number}"
            source.mkdir()
            (source / "file").write_text(f"{number}")
            try:
                return commit(store, source, parent=start.version).version
            except BranchMovedError:
                return None

        with ThreadPoolExecutor(8) as pool:
            won = [version for version in pool.map(write, range(8)) if version]
        assert len(won) == 1
        assert [entry.version for entry in DatasetRepository(store).log("corpus")] == [won[0], start.version]

    def test_a_writer_with_a_parent_may_try_again(self, local: CountingStore, folder: Path) -> None:
        start = commit(local, folder)
        (folder / "more").write_text("more")
        made = commit(local, folder, parent=start.version)
        assert commit(local, folder, parent=start.version) == made

    def test_an_entry_whose_answer_was_lost_is_ours(self, local: CountingStore, folder: Path) -> None:
        DatasetRepository.open(local)
        create = local.create

        def lossy(key: str, data: bytes) -> None:
            create(key, data)
            if key.startswith("refs/heads/"):
                raise ObjectExistsError(key)  # what a client sees that sent a successful create twice

        local.create = lossy  # type: ignore[method-assign]
        version = commit(local, folder)
        assert [entry.version for entry in DatasetRepository(local).log("corpus")] == [version.version]
        log = RefLog(local, "corpus", "main")
        head = log.head()
        assert log.append(version.version, after=head) == log.head() != head
        assert log.append(version.version, after=head) is None

    def test_a_store_that_overwrites_is_refused(self, local: CountingStore, folder: Path) -> None:
        create = local.create

        def overwriting(key: str, data: bytes) -> None:
            local.delete([key])
            create(key, data)

        local.create = overwriting  # type: ignore[method-assign]
        with pytest.raises(UnsafeStoreError, match="single_writer"):
            commit(local, folder)
        assert list(local.list("")) == []
        alone = DatasetRepository.open(local, single_writer=True)
        version = alone.commit(folder, name="corpus", message="m", author="a")
        assert alone.resolve("corpus") == version.version
        with pytest.raises(UnsafeStoreError):
            DatasetRepository.open(local)

    def test_a_store_of_something_else_is_left_alone(self, store: CountingStore, folder: Path) -> None:
        store.create("store.json", b'{"format":"other/9"}')
        with pytest.raises(UnknownFormatError, match="other/9"):
            commit(store, folder)
        assert store.puts == ["store.json"]
