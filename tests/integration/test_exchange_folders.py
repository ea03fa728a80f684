"""Folders, prefixes and file tables: other tools read what we write, and we take in what they wrote."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import fixtures_datasets
import pytest
from fixtures_datasets import CountingStore, commit, contents
from typer.testing import CliRunner

from deepseek_ops.adapters.stores import open_store
from deepseek_ops.airflow.triggers.uploads import fulfilled, survey
from deepseek_ops.cli.data import data_app
from deepseek_ops.core.ports import ObjectInfo, ObjectStore
from deepseek_ops.data import DatasetRepository, NothingSelectedError
from deepseek_ops.data.exchange import (
    ChangedInSourceError,
    Origin,
    PointerFileError,
    RefusedMemberError,
    commit_arriving,
    export_prefix,
    folder_files,
    no_split_by_name,
    prefix_files,
    split_by_name,
    stored_in_order,
)

folder = fixtures_datasets.folder
local = fixtures_datasets.local
s3_server = fixtures_datasets.s3_server
s3_store = fixtures_datasets.s3_store
s3_uri = fixtures_datasets.s3_uri
store = fixtures_datasets.store


def run(*arguments: str) -> dict[str, object]:
    result = CliRunner().invoke(data_app, list(arguments))
    assert result.exit_code == 0, (result.output, result.exception)
    return json.loads(result.stdout)


def taken(store: ObjectStore, source: ObjectStore, name: str = "back", **rules: object):
    files = prefix_files(source, split_of=split_by_name, **rules)  # type: ignore[arg-type]
    return commit_arriving(DatasetRepository.open(store), files, Origin(name, "import", "me"), source=source.uri)


@pytest.fixture
def corpus(tmp_path: Path, local: CountingStore) -> str:
    """Give the id of a version with three splits in three formats."""
    import pyarrow as pa
    from pyarrow import parquet

    root = tmp_path / "corpus"
    for split, count in (("train", 6), ("val", 2), ("test", 3)):
        rows = [{"id": number, "text": f"{split} {number}"} for number in range(count)]
        (root / "json" / split).mkdir(parents=True)
        (root / "json" / split / "0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (root / "parquet").mkdir(exist_ok=True)
        parquet.write_table(pa.Table.from_pylist(rows), root / "parquet" / f"{split}-00000.parquet")
        (root / "text").mkdir(exist_ok=True)
        (root / "text" / f"{split}.txt").write_text("".join(f"{row['text']}\n" for row in rows))
    return str(run("import", str(root), "--name", "corpus", "--splits", "path", "--store", local.uri)["version"])


def test_a_version_goes_to_a_prefix_and_comes_back_the_same(store: CountingStore, folder: Path, tmp_path: Path) -> None:
    version = commit(store, folder)
    target = open_store(str(tmp_path / "out"))
    done = export_prefix(store, stored_in_order(DatasetRepository(store).tree(version.version)), target)
    assert (done.num_files, done.num_sent) == (version.num_files, version.num_files)
    there = survey(target, "")
    assert there.marked
    assert fulfilled(target, there.manifests), "our own watcher takes it as a complete upload"
    assert taken(store, target).tree == version.tree
    again = export_prefix(store, stored_in_order(DatasetRepository(store).tree(version.version)), target)
    assert again.num_sent == 0, "what is there already is not sent again"
    (folder / "part0" / "new").write_bytes(b"new")
    later = commit(store, folder)
    assert export_prefix(store, stored_in_order(DatasetRepository(store).tree(later.version)), target).num_sent == 1


def test_an_object_that_changes_while_it_is_read_makes_no_version(local: CountingStore, tmp_path: Path) -> None:
    source = open_store(str(tmp_path / "source"))
    source.create("a", b"12345")
    for listed in (ObjectInfo("a", 4), ObjectInfo("a", 6), ObjectInfo("gone", 1)):
        files = prefix_files(source, split_of=no_split_by_name, expected=[listed])
        with pytest.raises(ChangedInSourceError):
            commit_arriving(DatasetRepository.open(local), files, Origin("x", "m", "me"), source="s")
    assert list(local.list("refs/")) == []


def test_an_import_holds_one_large_file_at_a_time_on_disk(local: CountingStore, tmp_path: Path) -> None:
    source = open_store(str(tmp_path / "source"))
    for number in range(12):
        source.create(f"large/{number}", bytes([number]) * (3 << 20))
    made = taken(local, source)
    assert (made.num_files, made.num_bytes) == (12, 36 << 20)
    assert DatasetRepository(local).verify(made.version).problems == ()
    source.create("README", b"1")
    source.create("Readme", b"1")
    with pytest.raises(RefusedMemberError, match="Readme"):
        taken(local, source, name="other")
    assert taken(local, source, name="other", case_sensitive=True).num_files == 14


def test_an_import_that_was_killed_leaves_nothing_and_the_next_one_finishes(
    local: CountingStore, tmp_path: Path
) -> None:
    source = open_store(str(tmp_path / "source"))
    for number in range(30):
        source.create(f"{number}", bytes([number]) * (1 << 20))
    puts = 0

    def die(key: str) -> None:
        nonlocal puts
        puts += key.startswith("objects/")
        if puts > 10:
            raise KeyboardInterrupt

    local.before_write = die
    with pytest.raises(KeyboardInterrupt):
        taken(local, source)
    assert list(local.list("refs/heads/")) == []
    local.before_write = lambda key: None
    local.puts.clear()
    assert taken(local, source).num_files == 30
    assert len([key for key in local.puts if key.startswith("objects/")]) < 30, "what is up stays up"


def test_a_hugging_face_snapshot_comes_in_and_pointers_do_not(local: CountingStore, tmp_path: Path) -> None:
    cache = tmp_path / "datasets--team--corpus"
    snapshot = cache / "snapshots" / "abc"
    (snapshot / "data").mkdir(parents=True)
    (cache / "blobs").mkdir()
    (cache / "blobs" / "b1").write_text('{"id": 1}\n')
    (snapshot / "data" / "train-00000-of-00001.jsonl").symlink_to(Path("../../../blobs/b1"))
    (snapshot / ".gitattributes").write_text("*")

    def imported() -> list[tuple[str, str]]:
        files = folder_files(snapshot, split_of=split_by_name)
        made = commit_arriving(DatasetRepository.open(local), files, Origin("hf", "m", "me"), source="snapshot")
        return [(file.entry.path, file.entry.split) for file in DatasetRepository(local).files(made.version)]

    assert imported() == [("data/train-00000-of-00001.jsonl", "train")]
    (snapshot / "secret").symlink_to("/etc/passwd")
    with pytest.raises(RefusedMemberError, match="symbolic link"):
        imported()
    (snapshot / "secret").unlink()
    (snapshot / "big.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n")
    with pytest.raises(PointerFileError):
        imported()


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "csv"])
def test_the_list_of_files_is_read_by_other_tools(local: CountingStore, corpus: str, tmp_path: Path, kind: str) -> None:
    from pyarrow import parquet

    target = tmp_path / f"files.{kind}"
    done = run("export", corpus, str(target), "--store", local.uri)
    assert (done["format"], done["num_files"]) == (kind, 9)
    if kind == "parquet":
        rows = parquet.read_table(target).to_pylist()
    elif kind == "jsonl":
        rows = [json.loads(line) for line in target.read_text().splitlines()]
    else:
        with target.open(newline="") as file:
            rows = [{**row, "size": int(row["size"])} for row in csv.DictReader(file)]
    files = DatasetRepository(local).files(corpus)
    assert rows == [
        {"path": one.path, "size": one.size, "sha256": one.digest.hex(), "split": one.split}
        for one in (file.entry for file in files)
    ]
    run("export", corpus, str(target), "--store", local.uri)  # equal: stays
    result = CliRunner().invoke(data_app, ["export", corpus, str(target), "--split", "val", "--store", local.uri])
    assert result.exit_code == 1


def test_datasets_and_pyarrow_read_what_we_write(local: CountingStore, corpus: str, tmp_path: Path) -> None:
    from datasets import load_dataset
    from pyarrow import dataset as arrow

    options = {"cache_dir": str(tmp_path / "cache")}
    for name, kind in (("json", "json"), ("parquet", "parquet"), ("text", "text")):
        target = tmp_path / name
        run("export", corpus, str(target), "--format", "hf", "--pattern", f"{name}/*", "--store", local.uri)
        loaded = load_dataset(str(target), **options)
        assert {split: rows.num_rows for split, rows in loaded.items()} == {"train": 6, "validation": 2, "test": 3}
        files = {"train": str(target / name / "train*" if name != "json" else target / name / "train" / "*")}
        assert load_dataset(kind, data_files=files, **options)["train"][0]["text"] == "train 0"
    plain = tmp_path / "plain"
    run("export", corpus, str(plain), "--split", "val", "--store", local.uri)
    assert sorted(contents(plain)) == ["json/val/0.jsonl", "parquet/val-00000.parquet", "text/val.txt"]
    table = arrow.dataset(plain / "parquet", format="parquet").to_table()
    assert table.column("text").to_pylist() == ["val 0", "val 1"]
    with pytest.raises(NothingSelectedError):
        list(stored_in_order(DatasetRepository(local).tree(corpus), ("none/*",)))


def test_the_command_line_takes_archives_with_their_digest(local: CountingStore, corpus: str, tmp_path: Path) -> None:
    target = tmp_path / "corpus.tar.zst"
    done = run("export", corpus, str(target), "--store", local.uri)
    arguments = ["import", str(target), "--name", "copy", "--splits", "path", "--store", local.uri]
    wrong = CliRunner().invoke(data_app, [*arguments, "--sha256", "0" * 64])
    assert wrong.exit_code == 1
    assert "0" * 64 in str(wrong.exception)
    copy = run(*arguments, "--sha256", str(done["sha256"]))
    assert copy["tree"] == DatasetRepository(local).load(corpus).tree
    assert os.listdir(tmp_path / "corpus")  # noqa: PTH208  (the source folder is as it was)


@pytest.mark.parametrize(
    ("path", "split"),
    [
        ("train/a.jsonl", "train"),
        ("data/train-00000-of-00002.parquet", "train"),
        ("validation.jsonl", "val"),
        ("en/dev/x", "val"),
        ("my_test_file.csv", "test"),
        ("train/test_cases.jsonl", "train"),
        ("trainer/contest.txt", ""),
        ("notes.md", ""),
    ],
)
def test_paths_say_which_split_a_file_is_of(path: str, split: str) -> None:
    assert split_by_name(path) == split
