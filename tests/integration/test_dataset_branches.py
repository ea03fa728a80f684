"""Branches, tags and merges on a folder and on a real S3 server."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fixtures_datasets
import fixtures_s3
import pytest
from fixtures_datasets import CountingStore, age, commit, contents

from deepseek_ops.data import (
    BranchExistsError,
    BranchMovedError,
    BranchNotFoundError,
    DatasetRepository,
    InvalidNameError,
    MergeConflictError,
    OtherDatasetError,
    Preference,
    VersionNotFoundError,
)
from deepseek_ops.data.refs import RefLog, datasets
from deepseek_ops.embedded.seaweedfs import SeaweedServer

folder, local, store = fixtures_datasets.folder, fixtures_datasets.local, fixtures_datasets.store
s3_server, s3_store, s3_uri = fixtures_s3.s3_server, fixtures_s3.s3_store, fixtures_s3.s3_uri


class TestBranches:
    def test_a_branch_costs_one_entry(self, store: CountingStore, folder: Path) -> None:
        first = commit(store, folder)
        store.puts.clear()
        repository = DatasetRepository(store)
        assert repository.branch("corpus", "exp/first", "corpus") == first.version
        entries = [key for key in store.puts if key.startswith("refs/heads/corpus/exp%2Ffirst/")]
        assert store.puts == [f"commits/{first.version}", *entries], "the old record is announced, then named"
        assert len(entries) == 1
        assert repository.resolve("corpus@exp/first") == first.version
        assert {name: entry.version for name, entry in repository.branches("corpus").items()} == {
            "exp/first": first.version,
            "main": first.version,
        }

    def test_beginning_it_again_changes_nothing_and_elsewhere_is_refused(
        self, store: CountingStore, folder: Path
    ) -> None:
        first = commit(store, folder)
        repository = DatasetRepository(store)
        repository.branch("corpus", "next", first.version)
        assert repository.branch("corpus", "next", first.version) == first.version
        (folder / "more").write_bytes(b"more")
        commit(store, folder)
        with pytest.raises(BranchExistsError, match=first.version):
            repository.branch("corpus", "next", "corpus")
        with pytest.raises(OtherDatasetError, match="corpus"):
            repository.branch("other", "main", "corpus")

    @pytest.mark.parametrize("name", ["", "a@b", "a//b", "../x", "a/..", "/a", "a/", "x" * 300, "a b", "é"])
    def test_branch_names_are_plain(self, local: CountingStore, folder: Path, name: str) -> None:
        commit(local, folder)
        with pytest.raises(InvalidNameError):
            DatasetRepository(local).branch("corpus", name, "corpus")
        with pytest.raises(InvalidNameError):
            commit(local, folder, branch=name)
        if name:
            with pytest.raises(VersionNotFoundError):
                DatasetRepository(local).resolve(f"corpus@{name}")

    def test_a_deleted_branch_is_gone_and_can_be_made_again(self, store: CountingStore, folder: Path) -> None:
        first = commit(store, folder)
        repository = DatasetRepository(store)
        repository.branch("corpus", "next", "corpus")
        assert repository.delete_branch("corpus", "next") == first.version
        assert list(repository.branches("corpus")) == ["main"]
        with pytest.raises(VersionNotFoundError):
            repository.resolve("corpus@next")
        with pytest.raises(VersionNotFoundError):
            repository.log("corpus", branch="next")
        with pytest.raises(BranchNotFoundError, match=first.version):
            repository.delete_branch("corpus", "next")
        assert repository.branch("corpus", "next", first.version) == first.version
        assert repository.resolve("corpus@next") == first.version
        assert len(list(RefLog(store, "corpus", "next").all_entries())) == 3

    def test_a_commit_to_a_deleted_branch_begins_it_again(self, store: CountingStore, folder: Path) -> None:
        first = commit(store, folder)
        repository = DatasetRepository(store)
        repository.delete_branch("corpus", "main")
        (folder / "more").write_bytes(b"more")
        again = commit(store, folder)
        assert repository.resolve("corpus") == again.version
        assert repository.describe(again.version)["parents"] == []
        assert repository.load(first.version) == first

    def test_a_commit_and_a_deletion_that_race_do_not_both_win(self, store: CountingStore, folder: Path) -> None:
        first = commit(store, folder)
        repository = DatasetRepository(store)
        (folder / "more").write_bytes(b"more")

        def meanwhile(key: str) -> None:
            if key.startswith("refs/heads/corpus/main"):
                store.before_write = lambda _key: None
                DatasetRepository(store).merge("corpus", second.version, author="other")

        repository.branch("corpus", "next", first.version)
        second = commit(store, folder, branch="next", parent=first.version)
        store.before_write = meanwhile
        with pytest.raises(BranchMovedError):
            repository.delete_branch("corpus", "main")
        assert repository.resolve("corpus") == second.version

    def test_datasets_and_branches_are_found_by_jumping(self, store: CountingStore, folder: Path) -> None:
        for number in range(4):
            (folder / "number").write_text(str(number))
            commit(store, folder)
            commit(store, folder, name="corpus-b")
        DatasetRepository(store).branch("corpus", "a-b", "corpus")
        DatasetRepository(store).branch("corpus", "a", "corpus")
        store.gets.clear()
        assert list(DatasetRepository(store).branches("corpus")) == ["a", "a-b", "main"]
        assert len(store.gets) == 3
        assert datasets(store) == ["corpus", "corpus-b"]

    def test_tags_are_listed(self, store: CountingStore, folder: Path) -> None:
        first = commit(store, folder)
        repository = DatasetRepository(store)
        repository.tag("dataset-v1.1", "corpus")
        repository.tag("dataset-v1.0", "corpus")
        assert repository.tags() == {"dataset-v1.0": first.version, "dataset-v1.1": first.version}


def diverged(store: CountingStore, folder: Path, ours: dict[str, str], theirs: dict[str, str]) -> list[str]:
    """Commit the folder, then each side's changes on main and on next; return the three versions."""
    age(folder)
    first = commit(store, folder, splits={"train": 10}, lineage={"raw": "abc"}).version
    versions = [first]
    DatasetRepository(store).branch("corpus", "next", first)
    for branch, changes in (("main", ours), ("next", theirs)):
        before = {path: (folder / path).read_bytes() if (folder / path).exists() else None for path in changes}
        for path, text in changes.items():
            (folder / path).write_text(text)
        count = {"train": 10 + len(changes)}
        versions.append(commit(store, folder, branch=branch, message=branch, splits=count).version)
        for path, data in before.items():
            (folder / path).write_bytes(data) if data is not None else (folder / path).unlink()
    return versions


class TestMerges:
    def test_both_sides_changes_are_in_the_merge(self, store: CountingStore, folder: Path, tmp_path: Path) -> None:
        base, ours, theirs = diverged(store, folder, {"mine": "1"}, {"part0/0000.bin": "2", "part1/new": "3"})
        expected = contents(folder) | {"mine": b"1", "part0/0000.bin": b"2", "part1/new": b"3"}
        store.puts.clear()
        repository = DatasetRepository(store)
        result = repository.merge("corpus", "corpus@next", author="me")
        assert (result.how, result.changed) == ("merge", 2)
        assert {key.partition("/")[0] for key in store.puts} == {"trees", "commits", "refs"}, "no bytes are moved"
        body = repository.describe(result.version.version)
        assert body["parents"] == [ours, theirs]
        assert body["lineage"] == {"merged": {"ours": ours, "theirs": theirs, "bases": [base]}}
        assert body["message"] == "Merge corpus@next into main"
        assert result.version.splits == {"train": 13}
        repository.checkout("corpus", tmp_path / "out")
        assert contents(tmp_path / "out") == expected
        assert repository.verify("corpus").problems == ()

    def test_the_merge_is_the_tree_of_the_same_folder(self, local: CountingStore, folder: Path) -> None:
        diverged(local, folder, {"mine": "1"}, {"theirs": "2"})
        merged = DatasetRepository(local).merge("corpus", "corpus@next", author="me").version
        (folder / "mine").write_text("1")
        (folder / "theirs").write_text("2")
        assert commit(local, folder, name="other").tree == merged.tree

    def test_merging_again_does_nothing(self, store: CountingStore, folder: Path) -> None:
        diverged(store, folder, {"mine": "1"}, {"theirs": "2"})
        repository = DatasetRepository(store)
        first = repository.merge("corpus", "corpus@next", author="me")
        store.puts.clear()
        again = repository.merge("corpus", "corpus@next", author="me")
        assert (again.how, again.version) == ("already merged", first.version)
        assert store.puts == []

    def test_a_branch_that_only_went_ahead_is_followed(self, store: CountingStore, folder: Path) -> None:
        _, ours, _ = diverged(store, folder, {"mine": "1"}, {"theirs": "2"})
        repository = DatasetRepository(store)
        repository.branch("corpus", "slow", "corpus")
        ahead = repository.merge("corpus", "corpus@next", author="me").version
        followed = repository.merge("corpus", "corpus", into="slow", author="me")
        assert (followed.how, followed.version) == ("fast-forward", ahead)
        repository.branch("corpus", "slower", ours)
        made = repository.merge("corpus", "corpus", into="slower", author="me", fast_forward=False)
        assert made.how == "merge"
        assert made.version.tree == ahead.tree

    def test_all_conflicts_are_named_at_once_and_nothing_is_merged(self, store: CountingStore, folder: Path) -> None:
        _, ours, theirs = diverged(store, folder, {"empty": "1", "new": "1"}, {"empty": "2", "new": "2", "x": "3"})
        repository = DatasetRepository(store)
        with pytest.raises(MergeConflictError) as caught:
            repository.merge("corpus", "corpus@next", author="me")
        assert [(one.path, one.kind) for one in caught.value.conflicts] == [
            ("empty", "both modified"),
            ("new", "both added"),
        ]
        text = str(caught.value)
        assert all(
            part in text for part in (ours, theirs, "--ours", caught.value.conflicts[0].ours or "", "corpus@next")
        )
        assert repository.resolve("corpus") == ours

    def test_sides_chosen_by_glob_settle_them(self, store: CountingStore, folder: Path) -> None:
        diverged(store, folder, {"empty": "1", "new": "1"}, {"empty": "2", "new": "2", "x": "3"})
        repository = DatasetRepository(store)
        chosen = [Preference("ours", "emp*"), Preference("theirs", "*")]
        result = repository.merge("corpus", "corpus@next", author="me", preferences=chosen)
        assert [one.path for one in result.resolved] == ["empty", "new"]
        found = {path: repository.read_file("corpus", path) for path in ("empty", "new", "x")}
        assert found == {"empty": b"1", "new": b"2", "x": b"3"}
        assert result.version.splits == {}

    def test_redoing_a_version_gives_one_parent(self, store: CountingStore, folder: Path) -> None:
        _, ours, _ = diverged(store, folder, {"mine": "1"}, {"theirs": "2"})
        repository = DatasetRepository(store)
        result = repository.merge("corpus", "corpus@next", author="me", message="redone", linear=True)
        body = repository.describe(result.version.version)
        assert (body["parents"], body["lineage"], body["message"]) == ([ours], {}, "redone")
        assert repository.merge("corpus", "corpus@next", author="me", linear=True).how == "already merged"

    def test_the_log_shows_the_graph(self, store: CountingStore, folder: Path) -> None:
        base, ours, theirs = diverged(store, folder, {"mine": "1"}, {"theirs": "2"})
        repository = DatasetRepository(store)
        merged = repository.merge("corpus", "corpus@next", author="me").version.version
        entries = repository.log("corpus")
        assert [entry.version for entry in entries] == [merged, *sorted([ours, theirs]), base]
        assert entries[0].parents == (ours, theirs)
        assert [bool(entry.at) for entry in entries] == [entry.version != theirs for entry in entries]
        assert [entry.version for entry in repository.log("corpus", limit=1)] == [merged]

    def test_racing_merges_are_all_in_the_result(self, store: CountingStore, folder: Path) -> None:
        first = commit(store, folder)
        repository = DatasetRepository(store)
        for number in range(6):
            (folder / f"new{number}").write_text(str(number))
            commit(store, folder, branch=f"b{number}", parent=first.version)
            (folder / f"new{number}").unlink()

        def merge(number: int) -> str:
            return DatasetRepository(store).merge("corpus", f"corpus@b{number}", author="me").how

        with ThreadPoolExecutor(6) as pool:
            assert sorted(pool.map(merge, range(6))) == ["fast-forward", *["merge"] * 5]
        assert [path for path in repository.paths("corpus") if path.startswith("new")] == [f"new{n}" for n in range(6)]

    def test_a_merge_into_a_missing_branch_says_so(self, local: CountingStore, folder: Path) -> None:
        commit(local, folder)
        with pytest.raises(BranchNotFoundError, match="corpus@none does not exist"):
            DatasetRepository(local).merge("corpus", "corpus", into="none", author="me")


class TestRaces:
    """The benchmark that runs 10,000 rounds, for as many as a test may take: every writer is a process."""

    @pytest.fixture
    def race(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
        monkeypatch.delitem(sys.modules, "racing_writers", raising=False)
        import racing_writers

        return racing_writers.race

    def test_eight_processes_keep_every_promise_on_a_folder(self, race, tmp_path: Path) -> None:
        report = race((tmp_path / "store").as_uri(), {}, rounds=40, writers=8)
        assert report.broken == []
        assert report.commits > 100
        assert report.deletions + report.refused > 100

    @pytest.mark.slow
    def test_four_processes_keep_every_promise_on_s3(self, race, s3_server: SeaweedServer, s3_uri: str) -> None:
        report = race(s3_uri, s3_server.credentials, rounds=12, writers=4)
        assert report.broken == []
        assert report.commits > 15
