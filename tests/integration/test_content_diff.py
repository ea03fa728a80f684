"""Two stored versions compared record by record, in every format, and checked from the command line."""

from __future__ import annotations

import gzip
import json
import random

import pytest
import zstandard
from typer.testing import CliRunner

from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.cli.main import build
from deepseek_ops.data import DatasetRepository
from deepseek_ops.data.content import DiffOptions, record_diff
from deepseek_ops.data.content.incremental import since
from deepseek_ops.data.content.page import diff_page


@pytest.fixture
def repository(tmp_path):
    return DatasetRepository.open(LocalStore(tmp_path / "store"))


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    (folder / "documents").mkdir(parents=True)
    return folder


def commit(repository, folder):
    return repository.commit(folder, name="corpus", message="m", author="a").version


def lines(records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def records(count, start=0):
    return [{"id": f"r{at}", "text": f"the record number {at} says something in English"} for at in range(start, count)]


def write_jsonl(folder, rows):
    (folder / "documents" / "train.jsonl").write_bytes(lines(rows))


def write_gzip(folder, rows):
    (folder / "documents" / "train.jsonl.gz").write_bytes(gzip.compress(lines(rows), mtime=0))


def write_zstd(folder, rows):
    (folder / "documents" / "train.jsonl.zst").write_bytes(zstandard.compress(lines(rows)))


def write_parquet(folder, rows):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), folder / "documents" / "train.parquet", row_group_size=7)


@pytest.mark.parametrize("write", [write_jsonl, write_gzip, write_zstd, write_parquet])
def test_added_removed_changed_and_equal_records_are_counted(repository, data, write):
    rows = records(40)
    write(data, rows)
    old = commit(repository, data)
    changed = {**rows[5], "text": rows[5]["text"].replace("English", "plain English words")}
    new_rows = [row for row in rows[3:] if row["id"] != "r5"] + [changed] + records(50, 40)
    random.Random(1).shuffle(new_rows)  # noqa: S311  (an order)
    write(data, new_rows)
    found = record_diff(repository, old, commit(repository, data), DiffOptions(key="id"))
    split = found.splits["train"]
    assert (split.added.records, split.removed.records, split.changed.records, split.unchanged) == (10, 3, 1, 36)
    assert (split.added.tokens, split.removed.tokens, split.changed.tokens) == (80, 24, 2)
    example = next(one for one in found.examples if one.kind == "changed")
    assert (example.key, "plain English words" in example.new) == ("r5", True)
    assert record_diff(repository, old, "corpus").splits["train"].changed.records == 0, "by content: out and in"


def test_only_files_that_differ_are_read(repository, data):
    write_jsonl(data, records(5))
    (data / "documents" / "test.jsonl").write_bytes(lines(records(300, 200)))
    old = commit(repository, data)
    write_jsonl(data, records(6))
    found = record_diff(repository, old, commit(repository, data))
    assert list(found.splits) == ["train"]
    assert found.files == {"added": 0, "removed": 0, "modified": 1}


def test_records_that_move_between_files_are_equal_and_between_splits_are_moved(repository, data):
    write_jsonl(data, records(20))
    old = commit(repository, data)
    (data / "documents" / "train.jsonl").unlink()
    (data / "documents" / "train-00000.jsonl").write_bytes(lines(records(8)))
    (data / "documents" / "train-00001.jsonl").write_bytes(lines(records(15, 8)))
    (data / "documents" / "test.jsonl").write_bytes(lines(records(20, 15)))
    found = record_diff(repository, old, commit(repository, data))
    assert found.splits["train"].unchanged == 15
    assert (found.splits["test"].moved, found.splits["test"].added.records) == (5, 0)
    assert found.splits["train"].removed.records == 0


def test_repeated_records_are_counted_as_often_as_they_stand_there(repository, data):
    write_jsonl(data, [{"text": "same"}] * 5)
    old = commit(repository, data)
    write_jsonl(data, [{"text": "same"}] * 7)
    split = record_diff(repository, old, commit(repository, data)).splits["train"]
    assert (split.added.records, split.unchanged) == (2, 5)


def test_text_files_are_lines_or_documents(repository, data):
    (data / "notes.txt").write_text("one\ntwo\nthree\n")
    old = commit(repository, data)
    (data / "notes.txt").write_text("one\n2\nthree\n")
    new = commit(repository, data)
    by_line = record_diff(repository, old, new).splits["all"]
    assert (by_line.added.records, by_line.removed.records, by_line.unchanged) == (1, 1, 2)
    whole = record_diff(repository, old, new, DiffOptions(text_unit="document")).splits["all"]
    assert (whole.added.records, whole.removed.records) == (1, 1)


def test_language_script_and_length_shift_are_seen(repository, data):
    write_jsonl(data, records(60))
    old = commit(repository, data)
    russian = "Это предложение на русском языке про погоду и реки номер "
    write_jsonl(data, records(30) + [{"id": f"n{at}", "text": russian * 4 + str(at)} for at in range(30)])
    split = record_diff(repository, old, commit(repository, data)).splits["train"]
    assert split.new.languages == {"en": 0.5, "ru": 0.5}
    assert split.shift["languages"] == pytest.approx(0.5)
    assert split.shift["scripts"] > 0.5
    assert split.shift["ks"] == pytest.approx(0.5)


def test_lines_that_are_no_record_are_counted_not_fatal(repository, data):
    write_jsonl(data, records(3))
    old = commit(repository, data)
    (data / "documents" / "train.jsonl").write_bytes(lines(records(3)) + b"{broken\n\xff\xfe\n" + lines(records(4, 3)))
    found = record_diff(repository, old, commit(repository, data))
    assert (found.unreadable, found.splits["train"].added.records) == (2, 1)


def test_a_large_file_that_lies_in_no_pack_is_compared(repository, data):
    rows = [{"id": f"r{at}", "text": "word " * 40 + str(at)} for at in range(6000)]
    write_jsonl(data, rows)
    assert (data / "documents" / "train.jsonl").stat().st_size > 1 << 20
    old = commit(repository, data)
    write_jsonl(data, rows[1:])
    split = record_diff(repository, old, commit(repository, data)).splits["train"]
    assert (split.added.records, split.removed.records, split.unchanged) == (0, 1, 5999)


def test_the_page_escapes_what_records_say(repository, data):
    write_jsonl(data, records(3))
    old = commit(repository, data)
    write_jsonl(data, [*records(3), {"id": "<script>", "text": "<script>alert(1)</script> & more"}])
    page = diff_page(record_diff(repository, old, commit(repository, data)))
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_since_names_what_incremental_training_reads(repository, data):
    write_jsonl(data, records(3))
    (data / "documents" / "test.jsonl").write_bytes(lines(records(5, 3)))
    old = commit(repository, data)
    (data / "documents" / "train-00001.jsonl").write_bytes(lines(records(9, 6)))
    (data / "documents" / "test.jsonl").unlink()
    new = commit(repository, data)
    found = since(repository, old)
    assert (found.version, found.paths, found.removed) == (new, ("documents/train-00001.jsonl",), 1)
    assert since(repository, new).paths == ()


def call(*arguments):
    return CliRunner().invoke(build(["data"]), ["data", *map(str, arguments)], catch_exceptions=False)


def test_the_commands_say_what_the_functions_say(repository, data, tmp_path):
    write_jsonl(data, records(30))
    old = commit(repository, data)
    write_jsonl(data, records(31))
    commit(repository, data)
    store = tmp_path / "store"
    body = json.loads(call("diff-records", old, "corpus", "--store", store, "--key", "id").stdout)
    assert body["splits"]["train"]["added"]["records"] == 1
    page = tmp_path / "diff.html"
    assert "+1 added" in call("diff-records", old, "corpus", "--store", store, "--text", "--page", page).stdout
    assert "<svg" in page.read_text()
    assert json.loads(call("since", old, "--store", store).stdout)["paths"] == ["documents/train.jsonl"]
    config = tmp_path / "deepseek.yaml"
    config.write_text("data: {checks: {schema: {fields: {text: {max_length: 9}}}}}")
    refused = call("check", "corpus", "--store", store, "-c", config, "--text")
    assert (refused.exit_code, "31 of 31 records break the rule" in refused.stdout) == (1, True)
    config.write_text("data: {checks: {contamination: {against: [eval/quiz.jsonl]}}}")
    (tmp_path / "eval").mkdir()
    (tmp_path / "eval" / "quiz.jsonl").write_bytes(
        lines([{"question": "the record number 7 says something in English"}])
    )
    leaky = call("check", data, "-c", config)
    assert leaky.exit_code == 1
    assert json.loads(leaky.stdout)["findings"][0]["check"] == "contamination.quiz.jsonl"
