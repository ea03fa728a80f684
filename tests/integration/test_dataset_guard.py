"""The pairing of commits and data, and versions made by somebody who means harm."""

from __future__ import annotations

import hashlib
import os
import subprocess
import zlib
from pathlib import Path

import fixtures_datasets
import msgpack
import pytest
import zstandard
from fixtures_datasets import CountingStore, commit, contents

from deepseek_ops.core.errors import DeepSeekOpsError, IntegrityError
from deepseek_ops.core.records import canonical_json
from deepseek_ops.data import (
    DatasetPointer,
    DatasetRepository,
    NotAWorktreeError,
    ObjectCache,
    UnsafeTargetError,
    Worktree,
    collisions,
    materialise,
    pointer_text,
    read_pointer,
    recover,
    switch,
)
from deepseek_ops.data.committing import commit_body, put_commit
from deepseek_ops.data.guard import (
    DatasetChangedError,
    DatasetMismatchError,
    require_pointed,
    require_version,
)
from deepseek_ops.data.layout import pack_key, tree_key
from deepseek_ops.data.pages import (
    Entry,
    Location,
    PageRef,
    encode_page,
    encode_tree,
    page_digest,
    tree_digest,
)
from deepseek_ops.data.switching import Journal, Step
from deepseek_ops.data.trees import Tree

folder, local = fixtures_datasets.folder, fixtures_datasets.local

CONTENT = b"gotcha"
DIGEST = hashlib.sha256(CONTENT).digest()


class TestPairing:
    def test_data_that_the_commit_names_is_let_through(
        self, local: CountingStore, folder: Path, tmp_path: Path
    ) -> None:
        version = commit(local, folder)
        pointer = DatasetPointer.of(version, local.uri)
        materialise(local, "corpus", tmp_path / "out")
        for data in (tmp_path / "out", version, version.version):
            assert require_pointed(data, pointer) == version.version
        require_version(tmp_path / "out", version)

    def test_other_data_is_refused_and_the_git_command_shows_why(
        self, local: CountingStore, folder: Path, tmp_path: Path
    ) -> None:
        repository = tmp_path / "model"
        (repository / "data").mkdir(parents=True)
        git = ["git", "-C", str(repository), "-c", "user.name=me", "-c", "user.email=me@example.com"]
        subprocess.run([*git, "init", "-q"], check=True)
        commits, versions = [], []
        for text in ("one", "two"):
            (folder / "samples").write_text(text)
            versions.append(commit(local, folder))
            pointer = DatasetPointer.of(versions[-1], local.uri)
            (repository / "data" / "corpus.dataset.yaml").write_text(pointer_text(pointer))
            subprocess.run([*git, "add", "."], check=True)
            subprocess.run([*git, "commit", "-q", "-m", text], check=True)
            head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True)
            commits.append(head.stdout.strip())
        materialise(local, versions[0].version, tmp_path / "out")
        named = read_pointer((repository / "data" / "corpus.dataset.yaml").read_text(), file="pointer")
        for made_for, start in (("", "git log -p -1"), (commits[0], "git diff")):
            with pytest.raises(DatasetMismatchError) as caught:
                require_pointed(tmp_path / "out", named, commit=commits[1], made_for=made_for)
            text = str(caught.value)
            assert versions[0].version in text
            assert versions[1].version in text
            command = text.split("`")[1]
            assert command.startswith(start)
            shown = subprocess.run(command.split(), cwd=repository, check=True, capture_output=True, text=True).stdout
            assert f"-version: {versions[0].version}" in shown
            assert f"+version: {versions[1].version}" in shown

    def test_a_folder_that_was_changed_is_refused(self, local: CountingStore, folder: Path, tmp_path: Path) -> None:
        version = commit(local, folder)
        materialise(local, "corpus", tmp_path / "out")
        (tmp_path / "out" / "empty").write_text("mine")
        with pytest.raises(DatasetChangedError, match="empty"):
            require_version(tmp_path / "out", version)
        with pytest.raises(NotAWorktreeError):
            require_version(folder, version)


def version_of(store: CountingStore, *entries: Entry) -> str:
    """Store a version with these entries, whatever they are, all of the same content."""
    DatasetRepository.open(store)
    pack = hashlib.sha256(CONTENT).hexdigest()
    store.put_blob(pack_key(pack), CONTENT)
    places = {entry.digest: Location(bytes.fromhex(pack), 0) for entry in entries}
    ref = PageRef(entries[0].path, len(entries), sum(entry.size for entry in entries), page_digest(entries))
    store.put_blob(tree_key(ref.digest), encode_page(entries, places))
    digest = tree_digest([ref])
    store.put_blob(tree_key(digest), encode_tree([ref]))
    body = commit_body(Tree(store, digest, [ref]), name="corpus", message="m", author="me")
    return put_commit(store, body, []).version


def entry(path: str) -> Entry:
    return Entry(path, len(CONTENT), DIGEST, "")


HOSTILE = [
    *("../out", "/etc/out", "a/../../out", "a//b", "./a", "a/.", "nul\0l", "back\\slash", "", "x" * 5000),
    *(".deepseek-ops/worktree.json", ".git/hooks/post-checkout"),
]


@pytest.mark.parametrize("way", ["plain", "cache", "switch"])
class TestHostile:
    def write(self, store: CountingStore, version: str, target: Path, way: str) -> None:
        if way == "switch":
            good = version_of(store, entry("good"))
            materialise(store, good, target)
            tree = Worktree(target)
            with tree.locked():
                switch(store, tree, tree.record().evolve(version=version))
            return
        cache = ObjectCache(target.parent / "cache") if way == "cache" else None
        materialise(store, version, target, cache=cache)

    @pytest.mark.parametrize("path", HOSTILE)
    def test_a_path_that_leaves_the_target_is_refused(
        self, local: CountingStore, tmp_path: Path, way: str, path: str
    ) -> None:
        version = version_of(local, *sorted([entry("a"), entry(path)]))
        inside = tmp_path / "jail" / "target"
        inside.parent.mkdir()
        with pytest.raises(DeepSeekOpsError):
            self.write(local, version, inside, way)
        assert set(contents(inside)) <= {"good"}
        names = {name.name for name in inside.parent.iterdir()}
        assert names <= {"cache", "target"}
        assert not Path("/etc/out").exists()
        assert not (tmp_path / "out").exists()

    def test_a_file_that_is_a_folder_too_is_refused(self, local: CountingStore, tmp_path: Path, way: str) -> None:
        version = version_of(local, entry("a"), entry("a/b"))
        with pytest.raises(UnsafeTargetError, match="both a file and a folder"):
            self.write(local, version, tmp_path / "target", way)

    def test_names_that_are_one_to_the_disk_are_refused(
        self, local: CountingStore, tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pairs = [("README", "readme"), ("caf\u00e9", "cafe\u0301"), ("A/x", "a/y"), ("STRASSE", "stra\u00dfe")]
        for number, (one, other) in enumerate(pairs):
            version = version_of(local, *map(entry, sorted([one, other])))
            target = tmp_path / str(number) / "target"
            target.parent.mkdir()
            with monkeypatch.context() as patch:
                patch.setattr(collisions, "tells_apart", lambda *_: False)
                with pytest.raises(UnsafeTargetError, match="is the same as"):
                    self.write(local, version, target, way)
            assert set(contents(target)) <= {"good"}

    def test_this_disk_tells_them_apart(self, local: CountingStore, tmp_path: Path, way: str) -> None:
        version = version_of(local, entry("README"), entry("caf\u00e9"), entry("cafe\u0301"), entry("readme"))
        if not collisions.tells_apart(tmp_path, "README", "readme"):
            pytest.skip("this disk does not")
        self.write(local, version, tmp_path / "target", way)
        assert len(contents(tmp_path / "target")) == 4

    def test_other_bytes_than_the_digest_says_are_refused(self, local: CountingStore, tmp_path: Path, way: str) -> None:
        wrong = Entry("a", len(CONTENT), hashlib.sha256(b"other!").digest(), "")
        with pytest.raises(IntegrityError, match="a in"):
            self.write(local, version_of(local, wrong), tmp_path / "target", way)
        assert set(contents(tmp_path / "target")) <= {"good"}

    def test_a_huge_length_costs_nothing(self, local: CountingStore, tmp_path: Path, way: str) -> None:
        huge = Entry("a", 4 << 30, DIGEST, "")
        with pytest.raises(IntegrityError):
            self.write(local, version_of(local, huge), tmp_path / "target", way)


class TestLinks:
    def test_a_link_in_a_working_folder_is_not_followed(
        self, local: CountingStore, folder: Path, tmp_path: Path
    ) -> None:
        first = commit(local, folder)
        (folder / "deep").mkdir()
        (folder / "deep" / "file").write_text("theirs")
        second = commit(local, folder)
        materialise(local, first.version, tmp_path / "work")
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "work" / "deep").symlink_to(tmp_path / "elsewhere")
        tree = Worktree(tmp_path / "work")
        with tree.locked(), pytest.raises(DeepSeekOpsError, match="deep"):
            switch(local, tree, tree.record().evolve(version=second.version), force=True)
        assert list((tmp_path / "elsewhere").iterdir()) == []

    def test_a_target_that_is_a_link_is_refused(self, local: CountingStore, folder: Path, tmp_path: Path) -> None:
        commit(local, folder)
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "out").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(DeepSeekOpsError):
            materialise(local, "corpus", tmp_path / "out")
        assert list((tmp_path / "elsewhere").iterdir()) == []

    def test_a_journal_that_came_with_the_folder_reaches_nothing_outside(
        self, local: CountingStore, folder: Path, tmp_path: Path
    ) -> None:
        commit(local, folder)
        materialise(local, "corpus", tmp_path / "out")
        (tmp_path / "precious").write_text("precious")
        tree = Worktree(tmp_path / "out")
        status = (tmp_path / "precious").stat()
        step = Step(path="../precious", before=(status.st_size, status.st_mtime_ns, status.st_ino))
        tree.write("journal.json", canonical_json(Journal(record=tree.record(), steps=(step,)).dump()))
        with tree.locked(), pytest.raises(UnsafeTargetError):
            recover(tree)
        assert (tmp_path / "precious").exists()


class TestBombs:
    @pytest.mark.parametrize("named", [True, False])
    def test_a_page_that_unpacks_to_gigabytes_is_refused(
        self, local: CountingStore, tmp_path: Path, named: bool
    ) -> None:
        """``named``: the frame says its size; without it only unpacking can tell."""
        version = version_of(local, entry("a"))
        page = DatasetRepository(local).tree(version).pages[0]
        compressor = zstandard.ZstdCompressor(level=1, write_content_size=named)
        bomb = compressor.compress(msgpack.packb({"paths": ["a" * (300 << 20)]}))
        assert len(bomb) < 1 << 20
        assert zlib.crc32(bomb)
        (Path(local.uri.removeprefix("file://")) / tree_key(page.digest)).write_bytes(bomb)
        with pytest.raises(IntegrityError):
            materialise(local, version, tmp_path / "out")
        assert not (tmp_path / "out").exists()


def test_the_record_of_a_folder_may_be_wrong_and_harms_nobody(
    local: CountingStore, folder: Path, tmp_path: Path
) -> None:
    commit(local, folder)
    materialise(local, "corpus", tmp_path / "out")
    own = tmp_path / "out" / ".deepseek-ops"
    (own / "index").write_bytes(os.urandom(500))
    assert len(Worktree(tmp_path / "out").status().added) == 43
    (own / "worktree.json").write_bytes(b"{")
    with pytest.raises(DeepSeekOpsError):
        Worktree(tmp_path / "out").record()
