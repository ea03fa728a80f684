"""Dataset versions against damage, strange folders, and through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import fixtures_datasets
import fixtures_s3
import msgpack
import pytest
import zstandard
from fixtures_datasets import CountingStore, commit, contents

from deepseek_ops.adapters.stores import open_store, store_environment
from deepseek_ops.core.errors import IntegrityError, LocalDiskError, ObjectNotFoundError
from deepseek_ops.data import (
    ChangedWhileReadError,
    DatasetRepository,
    EmptyDatasetError,
    TargetNotEmptyError,
    UnsafeTargetError,
    UnstorableFileError,
    VersionNotFoundError,
)
from deepseek_ops.data.pages import LOOSE, Entry, Location, encode_page, encode_tree, page_ref, tree_digest

folder, local, store = fixtures_datasets.folder, fixtures_datasets.local, fixtures_datasets.store
s3_server, s3_store, s3_uri = fixtures_s3.s3_server, fixtures_s3.s3_store, fixtures_s3.s3_uri


class TestDamage:
    def test_every_kind_of_damage_is_found_and_nothing_is_delivered(
        self, store: CountingStore, folder: Path, tmp_path: Path
    ) -> None:
        version = commit(store, folder)
        repository = DatasetRepository(store)
        assert len(contents(folder)) == version.num_files
        for kind in ("packs/", "objects/", "trees/", "commits/"):
            for info in list(store.list(kind)):
                good = store.get(info.key)
                for bad in (good[:-1] + bytes([good[-1] ^ 1]), good[: len(good) // 2], None):
                    store.delete([info.key])
                    if bad is not None:
                        store.create(info.key, bad)
                    with pytest.raises((IntegrityError, ObjectNotFoundError, VersionNotFoundError)):
                        repository.checkout(version.version, tmp_path / "out")
                    assert not (tmp_path / "out").exists()
                store.delete([info.key])
                store.create(info.key, good)
        repository.checkout(version.version, tmp_path / "out")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus", "out"]

    def test_verify_names_each_damaged_file(self, store: CountingStore, folder: Path) -> None:
        commit(store, folder)
        pack = next(store.list("packs/")).key
        data = bytearray(store.get(pack))
        data[0] ^= 1
        store.delete([pack, next(store.list("objects/")).key])
        store.create(pack, bytes(data))
        problems = DatasetRepository(store).verify("corpus").problems
        assert len(problems) == 2
        assert any("größe.txt" in problem for problem in problems)
        assert any("objects/sha256/" in problem and "does not exist" in problem for problem in problems)

    @pytest.mark.parametrize(
        "paths", [["../evil"], ["/evil"], ["a/../../evil"], ["a\\b"], ["a\x00b"], ["."], [".git/hooks/x"], ["a", "a/b"]]
    )
    def test_hostile_manifests_write_nothing(self, local: CountingStore, tmp_path: Path, paths: list[str]) -> None:
        digest = bytes.fromhex("ab" * 32)
        entries = [Entry(path, 4, digest, "") for path in paths]
        local.put_blob(f"trees/{page_ref(entries).digest}", encode_page(entries, {digest: LOOSE}))
        root = [page_ref(entries)]
        local.put_blob(f"trees/{tree_digest(root)}", encode_tree(root))
        version = self._forge(local, tree_digest(root))
        with pytest.raises(UnsafeTargetError):
            DatasetRepository(local).checkout(version, tmp_path / "in" / "out")
        assert not [path for path in tmp_path.rglob("*") if path.is_file()]

    @staticmethod
    def _forge(store: CountingStore, tree: str) -> str:
        from deepseek_ops.core.records import canonical_json, digest_of

        data = canonical_json({"name": "x", "tree": tree, "num_files": 1, "num_bytes": 4, "splits": {}})
        store.put_blob(f"commits/{digest_of(data)}", data)
        return digest_of(data)

    def test_a_file_of_unbelievable_size_is_refused_before_it_is_fetched(
        self, local: CountingStore, tmp_path: Path
    ) -> None:
        digest = bytes.fromhex("ab" * 32)
        entries = [Entry("huge", 1 << 60, digest, "")]
        page = encode_page(entries, {digest: Location(b"\1" * 32, 0)})
        assert msgpack.unpackb(zstandard.decompress(page))["sizes"] == [1 << 60]
        local.put_blob(f"trees/{page_ref(entries).digest}", page)
        root = [page_ref(entries)]
        local.put_blob(f"trees/{tree_digest(root)}", encode_tree(root))
        with pytest.raises(IntegrityError):
            DatasetRepository(local).checkout(self._forge(local, tree_digest(root)), tmp_path / "out")


class TestFolders:
    def test_an_empty_folder_is_no_version(self, local: CountingStore, tmp_path: Path) -> None:
        (tmp_path / "none").mkdir()
        with pytest.raises(EmptyDatasetError, match="none"):
            commit(local, tmp_path / "none")
        with pytest.raises(LocalDiskError, match="missing"):
            commit(local, tmp_path / "missing")

    def test_links_and_odd_names_are_refused(self, local: CountingStore, folder: Path) -> None:
        (folder / "link").symlink_to("/etc/passwd")
        with pytest.raises(UnstorableFileError, match="symbolic link"):
            commit(local, folder)
        (folder / "link").unlink()
        (folder / "a\\b").touch()
        with pytest.raises(UnstorableFileError, match="backslash"):
            commit(local, folder)
        (folder / "a\\b").unlink()
        Path(os.fsdecode(os.fsencode(folder) + b"/\xff")).touch()
        with pytest.raises(UnstorableFileError, match="UTF-8"):
            commit(local, folder)

    def test_a_file_that_grows_meanwhile_is_an_error_and_no_version(
        self, local: CountingStore, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from deepseek_ops.data import snapshot

        def scan(path: Path):
            found = list(scan_runs(path))
            (folder / "part1" / "0001.bin").write_bytes(b"x" * 5000)
            return found

        scan_runs = snapshot.scan_runs
        monkeypatch.setattr(snapshot, "scan_runs", scan)
        with pytest.raises(ChangedWhileReadError, match=r"0001\.bin"):
            commit(local, folder)
        assert list(local.list("refs/")) == []

    def test_other_files_are_never_overwritten(self, local: CountingStore, folder: Path, tmp_path: Path) -> None:
        commit(local, folder)
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("mine")
        with pytest.raises(TargetNotEmptyError):
            DatasetRepository(local).checkout("corpus", tmp_path / "out")
        assert contents(tmp_path / "out") == {"mine": b"mine"}
        (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(TargetNotEmptyError):
            DatasetRepository(local).checkout("corpus", tmp_path / "link")
        (tmp_path / "empty").mkdir()
        DatasetRepository(local).checkout("corpus", tmp_path / "empty")
        assert contents(tmp_path / "empty") == contents(folder)


class TestCommandLine:
    def test_does_what_the_library_does(
        self,
        s3_server: fixtures_s3.SeaweedServer,
        s3_uri: str,
        folder: Path,
        tmp_path: Path,
    ) -> None:
        environment = {**os.environ, **store_environment(s3_uri, s3_server.credentials)}

        def run(*words: str) -> tuple[int, str, str]:
            command = [sys.executable, "-m", "deepseek_ops.cli.main", "data", *words]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            return done.returncode, done.stdout, done.stderr

        pointer = str(tmp_path / "repo" / "data" / "corpus.dataset.yaml")
        status, out, _ = run("commit", str(folder), "--name", "corpus", "-m", "first", "--pointer", pointer)
        assert status == 0
        version = json.loads(out)["version"]
        status, out, _ = run("checkout", str(tmp_path / "out"), "--pointer", pointer)
        assert (status, contents(tmp_path / "out")) == (0, contents(folder))
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "file").write_text("not a version")
        status, out, error = run("checkout", str(tmp_path / "mine"), "--version", "corpus")
        assert (status, out, error.count("\n")) == (1, "", 1)
        assert "not empty" in error
        store = open_store(s3_uri, s3_server.credentials)
        store.delete([next(store.list("packs/")).key])
        status, out, error = run("verify", version[:16])
        assert status == 1
        assert len(json.loads(out)["problems"]) == error.count("\n") == 1
