"""A lake's prefix as a dataset: only what changed is fetched, and the version says what lies there."""

from __future__ import annotations

import os

import pytest

from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.core.errors import PermanentError
from deepseek_ops.data import DatasetRepository
from deepseek_ops.data.content import lake as lakes
from deepseek_ops.data.content.lake import MissingDatasetError, ingest


class CountingStore(LocalStore):
    """A local store that says which objects were read."""

    def __init__(self, folder):
        super().__init__(folder)
        self.read: list[str] = []

    def download(self, key, target):
        self.read.append(key)
        super().download(key, target)


@pytest.fixture
def lake(tmp_path):
    folder = tmp_path / "lake"
    (folder / "raw").mkdir(parents=True)
    for number in range(30):
        (folder / "raw" / f"part-{number:02d}.jsonl").write_text(f'{{"id": "{number}"}}\n' * (number + 1))
    (folder / "raw" / "large.bin").write_bytes(os.urandom(2 << 20))
    (folder / "_READY").write_text("done")
    return CountingStore(folder)


@pytest.fixture
def repository(tmp_path):
    return DatasetRepository.open(LocalStore(tmp_path / "store"))


def folder_of(lake):
    return lake.uri.removeprefix("file://")


def test_the_version_holds_the_data_and_no_markers(lake, repository, tmp_path):
    done = ingest(repository, lake, "corpus-raw")
    assert (done.fetched, done.unchanged, done.version.num_files) == (31, 0, 31)
    repository.checkout(done.version.version, tmp_path / "out")
    assert not (tmp_path / "out" / "_READY").exists()
    assert (tmp_path / "out/raw/large.bin").read_bytes() == lake.get("raw/large.bin")
    assert repository.describe(done.version.version)["lineage"] == {"uri": lake.uri}


def test_it_is_the_version_that_committing_the_folder_makes(lake, repository, tmp_path):
    done = ingest(repository, lake, "corpus-raw")
    repository.checkout(done.version.version, tmp_path / "out")
    as_folder = repository.commit(tmp_path / "out", name="other", message="m", author="a")
    assert as_folder.tree == done.version.tree


def test_a_second_ingest_reads_nothing_and_makes_no_version(lake, repository):
    first = ingest(repository, lake, "corpus-raw").version
    lake.read.clear()
    again = ingest(repository, lake, "corpus-raw")
    assert again.version == first
    assert lake.read == []
    assert again.unchanged == 31


def test_only_new_and_changed_objects_are_fetched_and_gone_ones_leave(lake, repository, tmp_path):
    ingest(repository, lake, "corpus-raw")
    lake.read.clear()
    root = tmp_path / "lake" / "raw"
    (root / "part-03.jsonl").write_text("changed\n")
    (root / "part-99.jsonl").write_text("new\n")
    (root / "part-05.jsonl").unlink()
    done = ingest(repository, lake, "corpus-raw")
    assert sorted(lake.read) == ["raw/part-03.jsonl", "raw/part-99.jsonl"]
    assert (done.fetched, done.removed, done.unchanged) == (2, 1, 29)
    paths = repository.paths(done.version.version)
    assert "raw/part-99.jsonl" in paths
    assert "raw/part-05.jsonl" not in paths
    assert repository.read_file(done.version.version, "raw/part-03.jsonl") == b"changed\n"


def test_an_object_uploaded_again_with_equal_bytes_makes_no_version(lake, repository, tmp_path):
    first = ingest(repository, lake, "corpus-raw").version
    path = tmp_path / "lake" / "raw" / "part-03.jsonl"
    os.utime(path, (1, 1))
    again = ingest(repository, lake, "corpus-raw")
    assert again.fetched == 1
    assert again.version == first
    assert ingest(repository, lake, "corpus-raw").fetched == 0, "the new time is remembered"


def test_without_the_remembered_listing_all_is_fetched_into_the_same_version(lake, repository):
    first = ingest(repository, lake, "corpus-raw").version
    store = repository.store
    store.delete([info.key for info in store.list(lakes.LISTINGS)])
    again = ingest(repository, lake, "corpus-raw")
    assert (again.fetched, again.version) == (31, first)


def test_many_batches_and_splices_make_the_same_tree(lake, repository, monkeypatch):
    whole = ingest(repository, lake, "whole").version
    monkeypatch.setattr(lakes, "_BATCH_FILES", 4)
    monkeypatch.setattr(lakes, "_BATCH_BYTES", 100)
    monkeypatch.setattr(lakes, "_SPLICE_FILES", 5)
    assert ingest(repository, lake, "parts").version.tree == whole.tree


def test_an_empty_prefix_is_refused(repository, tmp_path):
    (tmp_path / "nothing").mkdir()
    with pytest.raises(MissingDatasetError, match="no raw data below"):
        ingest(repository, LocalStore(tmp_path / "nothing"), "corpus-raw")


def test_a_key_that_leaves_the_folder_is_refused(lake, repository, tmp_path, monkeypatch):
    from deepseek_ops.core.ports import ObjectInfo

    monkeypatch.setattr(lake, "list", lambda prefix, **_: iter([ObjectInfo("../../evil", 3, 1.0)]))
    with pytest.raises(PermanentError, match="plain relative path"):
        ingest(repository, lake, "corpus-raw")
    assert not list(tmp_path.parent.glob("evil"))
