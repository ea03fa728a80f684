"""Working folders: status, commit, rebase, switching in place, and being killed in the middle of it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import fixtures_datasets
import fixtures_s3
import pytest
from fixtures_datasets import CountingStore, commit, contents

from deepseek_ops.data import (
    BranchMovedError,
    BranchNotFoundError,
    Committed,
    DatasetRepository,
    MergeConflictError,
    NoBranchError,
    NotAWorktreeError,
    Switched,
    TargetNotEmptyError,
    UncommittedChangesError,
    Worktree,
    commit_worktree,
    materialise,
    recover,
    switch,
)

folder, local, store = fixtures_datasets.folder, fixtures_datasets.local, fixtures_datasets.store
s3_server, s3_store, s3_uri = fixtures_s3.s3_server, fixtures_s3.s3_store, fixtures_s3.s3_uri


def take(store: CountingStore, target: Path, **options: object) -> Worktree:
    """Materialise main for people to work in."""
    materialise(store, "corpus", target, **{"branch": "main", "mode": "copy", **options})  # type: ignore[arg-type]
    for path in target.rglob("*"):  # no waiting for the clock's grain
        if path.is_file() and ".deepseek-ops" not in path.parts:
            os.utime(path, ns=(10**18, 10**18))
    tree = Worktree(target)
    with tree.locked():
        assert not tree.status()
    return tree


def save(store: CountingStore, tree: Worktree, **options: object) -> Committed:
    with tree.locked():
        recover(tree)
        values = {"message": "more", "author": "me", **options}
        return commit_worktree(DatasetRepository(store), tree, **values)  # type: ignore[arg-type]


def go(store: CountingStore, tree: Worktree, version: str, *, force: bool = False, **changes: object) -> Switched:
    with tree.locked():
        recover(tree)
        record = tree.record().evolve(version=DatasetRepository(store).resolve(version), **changes)
        return switch(store, tree, record, force=force)


class TestStatus:
    def test_it_names_what_changed_without_the_store(self, store: CountingStore, folder: Path, tmp_path: Path) -> None:
        commit(store, folder)
        tree = take(store, tmp_path / "work")
        (tree.folder / "new").write_text("new")
        (tree.folder / "empty").unlink()
        (tree.folder / "part0" / "0000.bin").write_bytes(b"changed")
        store.gets.clear()
        status = tree.status()
        assert (status.added, status.removed, status.modified) == (("new",), ("empty",), ("part0/0000.bin",))
        assert store.gets == []

    def test_only_files_whose_times_changed_are_read(
        self, local: CountingStore, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        commit(local, folder)
        tree = take(local, tmp_path / "work")
        (tree.folder / "part0" / "0000.bin").touch()
        os.utime(tree.folder / "part0" / "0000.bin", ns=(10**18 + 1, 10**18 + 1))
        read: list[str] = []
        real = Worktree.is_now
        monkeypatch.setattr(
            Worktree, "is_now", lambda self, file, entry: (read.append(file.name), real(self, file, entry))[1]
        )
        assert not tree.status()
        assert not tree.status()
        assert read == ["part0/0000.bin"], "and once only"

    def test_a_change_that_keeps_size_and_mtime_is_seen(
        self, local: CountingStore, folder: Path, tmp_path: Path
    ) -> None:
        commit(local, folder)
        tree = take(local, tmp_path / "work")
        path = tree.folder / "größe.txt"
        path.write_text("ä")
        os.utime(path, ns=(10**18, 10**18))
        assert tree.status().modified == ("größe.txt",)

    def test_a_plain_folder_is_none(self, tmp_path: Path) -> None:
        with pytest.raises(NotAWorktreeError, match="data checkout"):
            Worktree(tmp_path).record()


class TestCommit:
    def test_the_version_it_was_made_from_is_the_parent(
        self, store: CountingStore, folder: Path, tmp_path: Path
    ) -> None:
        first = commit(store, folder, split_of=lambda path: "train" if path.startswith("part0/") else "")
        tree = take(store, tmp_path / "work")
        (tree.folder / "new").write_text("new")
        (tree.folder / "part0" / "0000.bin").write_bytes(b"changed")
        made = save(store, tree)
        repository = DatasetRepository(store)
        assert made.status.added == ("new",)
        assert repository.resolve("corpus") == made.version.version == tree.record().version
        assert repository.describe(made.version.version)["parents"] == [first.version]
        splits = {file.entry.path: file.entry.split for file in repository.files("corpus")}
        assert splits["part0/0000.bin"] == "train"
        assert splits["new"] == ""
        assert not tree.status()
        assert save(store, tree).version == made.version, "nothing changed makes no version"

    def test_of_two_folders_the_second_is_told_and_can_rebase(
        self, store: CountingStore, folder: Path, tmp_path: Path
    ) -> None:
        commit(store, folder)
        one, two = take(store, tmp_path / "one"), take(store, tmp_path / "two")
        (one.folder / "one").write_text("1")
        (one.folder / "empty").write_text("filled")
        (two.folder / "two").write_text("2")
        first = save(store, one).version
        with pytest.raises(BranchMovedError, match="--rebase"):
            save(store, two)
        made = save(store, two, rebase=True)
        assert made.rebased is not None
        assert (made.rebased.written, made.rebased.kept) == (2, ())
        assert DatasetRepository(store).describe(made.version.version)["parents"] == [first.version]
        assert contents(two.folder) == contents(folder) | {"one": b"1", "two": b"2", "empty": b"filled"}
        assert not two.status()
        assert two.record().version == DatasetRepository(store).resolve("corpus")

    def test_a_rebase_with_a_conflict_changes_nothing(self, local: CountingStore, folder: Path, tmp_path: Path) -> None:
        commit(local, folder)
        one, two = take(local, tmp_path / "one"), take(local, tmp_path / "two")
        (one.folder / "empty").write_text("1")
        (two.folder / "empty").write_text("2")
        head = save(local, one).version.version
        before = two.record()
        with pytest.raises(MergeConflictError, match="empty"):
            save(local, two, rebase=True)
        assert DatasetRepository(local).resolve("corpus") == head
        assert (two.record(), two.status().modified) == (before, ("empty",))

    def test_a_part_is_committed_into_the_whole(self, store: CountingStore, folder: Path, tmp_path: Path) -> None:
        commit(store, folder)
        tree = take(store, tmp_path / "work", patterns=("part1/*",))
        names = sorted(contents(tree.folder))
        assert all(name.startswith("part1/") for name in names)
        (tree.folder / names[0]).unlink()
        (tree.folder / names[1]).write_bytes(b"changed")
        (tree.folder / "part9").mkdir()
        (tree.folder / "part9" / "new").write_bytes(b"new")
        save(store, tree)
        expected = contents(folder) | {names[1]: b"changed", "part9/new": b"new"}
        del expected[names[0]]
        DatasetRepository(store).checkout("corpus", tmp_path / "all")
        assert contents(tmp_path / "all") == expected
        assert not tree.status()

    def test_a_folder_of_a_tag_needs_a_branch(self, local: CountingStore, folder: Path, tmp_path: Path) -> None:
        commit(local, folder)
        tree = take(local, tmp_path / "work", branch="")
        (tree.folder / "new").write_text("new")
        with pytest.raises(NoBranchError):
            save(local, tree)
        made = save(local, tree, branch="exp/new")
        assert DatasetRepository(local).resolve("corpus@exp/new") == made.version.version
        assert tree.record().branch == "exp/new"

    def test_a_deleted_branch_does_not_come_back_by_itself(
        self, local: CountingStore, folder: Path, tmp_path: Path
    ) -> None:
        commit(local, folder)
        tree = take(local, tmp_path / "work")
        (tree.folder / "new").write_text("new")
        DatasetRepository(local).delete_branch("corpus", "main")
        with pytest.raises(BranchNotFoundError, match="data branch corpus main"):
            save(local, tree)


@pytest.fixture
def versions(store: CountingStore, folder: Path) -> list[str]:
    """Two versions that differ by an added, a removed and a changed file, and by a file that became a folder."""
    (folder / "shape").write_text("file")
    first = commit(store, folder).version
    before = contents(folder)
    (folder / "shape").unlink()
    (folder / "shape").mkdir()
    (folder / "shape" / "inner").write_text("inner")
    (folder / "part0" / "0000.bin").write_bytes(b"changed")
    shutil.rmtree(folder / "part1")
    (folder / "added").write_text("added")
    second = commit(store, folder).version
    (folder.parent / "first").mkdir()
    for name, data in before.items():
        (folder.parent / "first" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.parent / "first" / name).write_bytes(data)
    return [first, second]


class TestSwitch:
    def test_there_and_back_writes_only_what_differs(
        self, store: CountingStore, folder: Path, tmp_path: Path, versions: list[str]
    ) -> None:
        tree = take(store, tmp_path / "work")
        untouched = (tree.folder / "part0" / "0003.bin").stat().st_ino
        back = go(store, tree, versions[0])
        assert (back.written, back.removed) == (2 + 13, 2)
        assert contents(tree.folder) == contents(folder.parent / "first")
        assert (go(store, tree, versions[1]).written, tree.record().version) == (3, versions[1])
        assert contents(tree.folder) == contents(folder)
        assert (tree.folder / "part0" / "0003.bin").stat().st_ino == untouched
        assert not tree.status()
        assert sorted(path.name for path in tree.own.iterdir()) == ["index", "lock", "worktree.json"]

    def test_changes_it_would_overwrite_are_all_named(
        self, store: CountingStore, tmp_path: Path, versions: list[str]
    ) -> None:
        tree = take(store, tmp_path / "work")
        (tree.folder / "part0" / "0000.bin").write_bytes(b"mine")
        (tree.folder / "added").write_bytes(b"mine")
        (tree.folder / "part1").mkdir()
        (tree.folder / "part1" / "0001.bin").write_bytes(b"mine")
        (tree.folder / "part0" / "0003.bin").write_bytes(b"stays")
        (tree.folder / "other").write_bytes(b"stays")
        before = contents(tree.folder)
        with pytest.raises(UncommittedChangesError) as caught:
            go(store, tree, versions[0])
        assert caught.value.paths == ("added", "part0/0000.bin", "part1/0001.bin")
        assert contents(tree.folder) == before
        forced = go(store, tree, versions[0], force=True)
        assert "other" in forced.kept
        first = contents(tmp_path / "first")
        assert contents(tree.folder) == first | {"other": b"stays"}

    def test_unrelated_changes_come_along(self, store: CountingStore, tmp_path: Path, versions: list[str]) -> None:
        tree = take(store, tmp_path / "work")
        (tree.folder / "part0" / "0003.bin").write_bytes(b"mine")
        (tree.folder / "other").write_bytes(b"mine")
        assert go(store, tree, versions[0]).kept == ("other", "part0/0003.bin")
        assert tree.status().paths == ["other", "part0/0003.bin"]

    def test_a_file_that_is_right_already_is_no_conflict(
        self, local: CountingStore, folder: Path, tmp_path: Path
    ) -> None:
        commit(local, folder)
        tree = take(local, tmp_path / "work")
        (folder / "new").write_text("new")
        second = commit(local, folder).version
        (tree.folder / "new").write_text("new")
        assert go(local, tree, second).written == 0
        assert not tree.status()

    @pytest.mark.parametrize("mine", ["added", "shape/inner/deep"])
    def test_files_and_folders_do_not_bury_each_other(
        self, local: CountingStore, folder: Path, tmp_path: Path, mine: str
    ) -> None:
        commit(local, folder)
        tree = take(local, tmp_path / "work")
        for name in ("added/below", "shape/inner"):
            (folder / name).parent.mkdir()
            (folder / name).write_text("theirs")
        second = commit(local, folder).version
        (tree.folder / mine).parent.mkdir(parents=True, exist_ok=True)
        (tree.folder / mine).write_text("mine")
        with pytest.raises(UncommittedChangesError, match=mine):
            go(local, tree, second)
        go(local, tree, second, force=True)
        assert contents(tree.folder) == contents(folder)

    def test_another_part_can_be_asked_for(self, store: CountingStore, tmp_path: Path, versions: list[str]) -> None:
        tree = take(store, tmp_path / "work", patterns=("part0/*",))
        go(store, tree, versions[1], patterns=("part2/*", "added"))
        assert {name.partition("/")[0] for name in contents(tree.folder)} == {"part2", "added"}

    def test_a_target_with_other_files_is_left_alone(self, local: CountingStore, folder: Path, tmp_path: Path) -> None:
        commit(local, folder)
        (tmp_path / "work").mkdir()
        (tmp_path / "work" / "mine").write_text("mine")
        with pytest.raises(TargetNotEmptyError):
            materialise(local, "corpus", tmp_path / "work")
        assert [path.name for path in (tmp_path / "work").iterdir()] == ["mine"]


KILLED = """
import os, signal, sys
from pathlib import Path
from deepseek_ops.adapters.stores import open_store
from deepseek_ops.data import Worktree, recover, switch
import deepseek_ops.data.switching as switching
store, folder, version, step, name = sys.argv[1:]
left = [int(step)]
def die(*arguments, **options):
    left[0] -= 1
    if left[0] < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*arguments, **options)
real = getattr(switching, name)
setattr(switching, name, die)
tree = Worktree(Path(folder))
with tree.locked():
    recover(tree)
    switch(open_store(store), tree, tree.record().evolve(version=version))
"""


class TestKilled:
    @pytest.mark.parametrize(
        ("name", "step"),
        [
            ("write_folder", 0),
            ("carry_out", 0),
            ("_remove", 0),
            ("_remove", 7),
            ("_move_in", 0),
            ("_move_in", 2),
            ("_note", 0),
        ],
    )
    def test_a_switch_that_was_killed_is_rolled_back_or_finished(
        self, local: CountingStore, folder: Path, tmp_path: Path, name: str, step: int
    ) -> None:
        (folder / "shape").write_text("file")
        first = commit(local, folder).version
        before = contents(folder)
        tree = take(local, tmp_path / "work")
        (folder / "shape").unlink()
        (folder / "shape").mkdir()
        (folder / "shape" / "inner").write_text("inner")
        shutil.rmtree(folder / "part1")
        (folder / "part0" / "0000.bin").write_bytes(b"changed")
        (folder / "added").write_text("added")
        second = commit(local, folder).version
        command = [sys.executable, "-c", textwrap.dedent(KILLED), local.uri, str(tree.folder), second, str(step), name]
        ended = subprocess.run(command, capture_output=True, timeout=60, check=False)
        assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
        whole = set(before.values()) | set(contents(folder).values())
        assert set(contents(tree.folder).values()) <= whole, "no file is ever half-written"
        with tree.locked():
            changed = recover(tree)
        assert changed is (name != "write_folder")
        assert tree.record().version == (second if changed else first)
        assert contents(tree.folder) == (contents(folder) if changed else before)
        assert not tree.status()
        assert sorted(path.name for path in tree.own.iterdir()) == ["index", "lock", "worktree.json"]

    def test_what_somebody_writes_before_it_is_finished_is_kept(
        self, local: CountingStore, folder: Path, tmp_path: Path
    ) -> None:
        commit(local, folder)
        tree = take(local, tmp_path / "work")
        (folder / "empty").write_text("theirs")
        second = commit(local, folder).version
        command = [sys.executable, "-c", textwrap.dedent(KILLED), local.uri, str(tree.folder), second, "0", "_move_in"]
        subprocess.run(command, capture_output=True, timeout=60, check=False)
        assert tree.interrupted
        (tree.folder / "empty").write_text("mine")
        with tree.locked():
            recover(tree)
        assert (tree.folder / "empty").read_text() == "theirs"
        assert [path.read_text() for path in (tree.own / "rescued").rglob("empty")] == ["mine"]

    def test_so_is_what_somebody_writes_to_a_file_that_is_to_go(
        self, local: CountingStore, folder: Path, tmp_path: Path
    ) -> None:
        commit(local, folder)
        tree = take(local, tmp_path / "work")
        (folder / "empty").unlink()
        second = commit(local, folder).version
        command = [sys.executable, "-c", textwrap.dedent(KILLED), local.uri, str(tree.folder), second, "0", "_remove"]
        subprocess.run(command, capture_output=True, timeout=60, check=False)
        (tree.folder / "empty").write_text("mine")
        with tree.locked():
            recover(tree)
        assert contents(tree.folder) == contents(folder)
        assert [path.read_text() for path in (tree.own / "rescued").rglob("empty")] == ["mine"]
