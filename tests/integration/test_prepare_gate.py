"""What comes out of a prepare job: shards, what is left out, what is refused, and what the version says about it."""

from __future__ import annotations

import json
import random

import pytest
from fixtures_prepare import kitchen  # noqa: F401  (a pytest fixture)

from deepseek_ops.data import VersionNotFoundError
from deepseek_ops.data.content import DataGateError
from deepseek_ops.jobs import prepare_child, prepare_documents
from deepseek_ops.jobs.prepare_documents import MissingDocumentsError
from deepseek_ops.jobs.tokens import TokenSplit

pytestmark = pytest.mark.slow
WORDS = [f"word{number}" for number in range(3000)]
GENERATOR = """
import json
def prepare(raw, out, minimum=0):
    for path in sorted(raw.rglob("*.jsonl")):
        with path.open() as lines:
            for line in lines:
                document = json.loads(line)
                if len(document["text"]) >= minimum:
                    yield document
"""


def text_of(seed, count=40):
    return " ".join(random.Random(seed).choices(WORDS, k=count))  # noqa: S311


def corpus(count, start=0):
    return [{"id": f"d{at}", "text": text_of(at)} for at in range(start, count)]


def test_a_generator_is_written_in_shards_and_needs_no_files_of_its_own(kitchen):  # noqa: F811
    kitchen.write_raw("a.jsonl", corpus(200))
    result = kitchen.prepare(GENERATOR)
    found = [one for split in ("train", "val", "test") for one in kitchen.documents(result, split)]
    assert sorted(one["id"] for one in found) == sorted(one["id"] for one in corpus(200))
    assert kitchen.prepare(GENERATOR)["dataset"] == result["dataset"], "equal input, equal version"


def test_shards_end_where_they_are_full(tmp_path):
    documents = ({"id": str(at), "text": "x" * 90} for at in range(10))
    prepare_child.write_shards(documents, tmp_path / "out", shard_bytes=300)
    sizes = [len(path.read_text().splitlines()) for path in sorted((tmp_path / "out").iterdir())]
    assert sizes == [3, 3, 3, 1]
    assert [row.value["id"] for row in prepare_documents.source_rows(tmp_path / "out")] == [str(at) for at in range(10)]


def test_documents_and_tokens_of_a_split_go_on_in_the_next_file(kitchen, tmp_path, monkeypatch):  # noqa: F811
    from deepseek_ops.jobs import tokens
    from deepseek_ops.jobs.training_data import document_files

    kitchen.write_raw("a.jsonl", corpus(100))
    whole = kitchen.prepare(GENERATOR)
    source = kitchen.root / "job" / "work" / "scratch" / "out"
    monkeypatch.setattr(tokens.TokenWriter.__init__, "__kwdefaults__", {"shard_tokens": 4000, "vocab_size": 0})
    prepare_documents.write_dataset(
        source, tmp_path / "set", {"train": 0.8, "val": 0.1, "test": 0.1}, shard_bytes=5000,
        tokenizer_folder=kitchen.code / "tokenizer",
    )  # fmt: skip
    files = document_files(tmp_path / "set", "train")
    assert len(files) > 3
    assert [path.name for path in files[:2]] == ["train.jsonl", "train-00001.jsonl"]
    texts = [json.loads(line)["text"] for path in files for line in path.read_text().splitlines()]
    assert texts == [one["text"] for one in kitchen.documents(whole, "train")]
    shards = sorted((tmp_path / "set" / "tokens").glob("train-*.bin"))
    assert len(shards) > 3
    assert len(TokenSplit(tmp_path / "set" / "tokens", "train", length=16)) > 0


def test_parameters_reach_the_callable_and_make_another_version(kitchen):  # noqa: F811
    kitchen.write_raw("a.jsonl", [*corpus(100), {"id": "short", "text": "tiny document"}])
    first, second = kitchen.prepare(GENERATOR), kitchen.prepare(GENERATOR, parameters={"minimum": 50})
    assert first["report"]["documents"] == 101
    assert second["report"]["documents"] == 100
    assert kitchen.version(first) != kitchen.version(second)


def test_lineage_names_the_raw_version_and_the_verdict(kitchen):  # noqa: F811
    kitchen.write_raw("a.jsonl", corpus(100))
    version = kitchen.version(kitchen.prepare(GENERATOR))
    lineage = kitchen.datasets.describe(version.version)["lineage"]
    assert lineage["raw"] == {"dataset": "corpus-raw", "version": kitchen.datasets.resolve("corpus-raw")}
    assert lineage["gate"] == {"verdict": "pass", "findings": {}}


def test_limits_do_not_make_another_version(kitchen):  # noqa: F811
    kitchen.write_raw("a.jsonl", corpus(60))
    assert kitchen.prepare(GENERATOR)["dataset"] == kitchen.prepare(GENERATOR, limits={"open_files": 512})["dataset"]


def test_without_a_callable_the_raw_data_is_taken_as_it_is(kitchen):  # noqa: F811
    kitchen.write_raw("documents.jsonl", corpus(60))
    assert kitchen.prepare("", callable="")["report"]["documents"] == 60


def test_what_writes_no_documents_is_told_the_contract(kitchen):  # noqa: F811
    kitchen.write_raw("a.jsonl", corpus(1))
    with pytest.raises(MissingDocumentsError, match=r"documents-00000\.jsonl"):
        kitchen.prepare("def prepare(raw, out): out.mkdir()")


def near(text):
    words = text.split()
    return " ".join([*words[:-1], "different"])


def test_near_leaks_leave_from_training_and_the_held_out_splits_stay(kitchen):  # noqa: F811
    base = corpus(150)
    kitchen.write_raw("a.jsonl", base)
    before = kitchen.prepare(GENERATOR)
    copies = [{"id": f"{one['id']}-near", "text": near(one["text"])} for one in base]
    kitchen.write_raw("b.jsonl", copies)
    result = kitchen.prepare(GENERATOR)
    assert result["report"]["dropped_near_leaks"] > 5
    shingles = {}
    for split in ("train", "val", "test"):
        for one in kitchen.documents(result, split):
            shingles.setdefault(" ".join(str(one["text"]).split()[:-1]), set()).add(split)
    assert max(map(len, shingles.values())) == 1, "no two splits hold nearly equal documents"
    test = {one["id"] for one in kitchen.documents(before, "test")}
    assert test <= {one["id"] for one in kitchen.documents(result, "test")}


def refused(kitchen, checks, **changes):  # noqa: F811
    with pytest.raises(DataGateError) as error:
        kitchen.prepare(GENERATOR, checks=checks, **changes)
    with pytest.raises(VersionNotFoundError):
        kitchen.datasets.resolve("corpus")
    return str(error.value)


def test_contamination_blocks_and_makes_no_version(kitchen):  # noqa: F811
    documents = corpus(100)
    kitchen.write_raw("a.jsonl", documents)
    (kitchen.code / "quiz.jsonl").write_text(
        "".join(json.dumps({"question": one["text"]}) + "\n" for one in documents[:50])
    )
    checks = {"contamination": {"against": ["quiz.jsonl"]}}
    said = refused(kitchen, checks, evaluation=[{"name": "quiz", "fields": [], "path": "quiz.jsonl"}])
    assert "contamination.quiz" in said
    assert "quiz.jsonl, line" in said
    assert "documents-00000.jsonl line" in said


def test_contamination_can_be_dropped_or_only_reported(kitchen):  # noqa: F811
    documents = corpus(100)
    kitchen.write_raw("a.jsonl", documents)
    quiz = kitchen.root / "quiz"
    quiz.mkdir()
    (quiz / "quiz.jsonl").write_text("".join(json.dumps({"text": one["text"]}) + "\n" for one in documents[:50]))
    version = kitchen.datasets.commit(quiz, name="quiz", message="m", author="a")
    evaluation = [{"name": "quiz", "fields": [], "dataset": version.dump(), "pattern": "*"}]
    warned = kitchen.prepare(GENERATOR, evaluation=evaluation, checks={"contamination": {"action": "warn"}})
    assert warned["gate"]["verdict"] == "warn"
    assert warned["report"]["documents"] == 100
    dropped = kitchen.prepare(GENERATOR, evaluation=evaluation, checks={"contamination": {"action": "drop"}})
    left = {one["id"] for one in kitchen.documents(dropped, "train")}
    assert not left & {one["id"] for one in documents[:50]}
    assert dropped["report"]["dropped_contaminated"] == 100 - dropped["report"]["documents"] > 30
    lineage = kitchen.datasets.describe(kitchen.version(dropped).version)["lineage"]
    assert lineage["gate"]["findings"] == {"contamination.quiz": dropped["report"]["dropped_contaminated"]}


def test_a_schema_failure_names_the_line_and_declared_fields_are_kept(kitchen):  # noqa: F811
    documents = [{**one, "source": "web"} for one in corpus(60)]
    kitchen.write_raw("a.jsonl", [*documents, {"id": "bad", "text": text_of("bad"), "source": 7}])
    checks = {"schema": {"fields": {"source": {"type": "string"}}}}
    said = refused(kitchen, checks)
    assert "documents-00000.jsonl, line 61: it is a int, not a string; source='7'; id bad" in said
    kitchen.write_raw("a.jsonl", documents)
    assert {one["source"] for one in kitchen.documents(kitchen.prepare(GENERATOR, checks=checks), "train")} == {"web"}


def test_drift_is_judged_against_the_version_before(kitchen):  # noqa: F811
    kitchen.write_raw("a.jsonl", corpus(100))
    kitchen.prepare(GENERATOR)
    kitchen.write_raw("a.jsonl", [{"id": f"l{at}", "text": text_of(f"l{at}", 200)} for at in range(100)])
    checks = {"quality": {"max_drift": 0.3, "action": "block"}}
    with pytest.raises(DataGateError, match=r"lengths of train moved by 1\.0"):
        kitchen.prepare(GENERATOR, checks=checks)
    assert kitchen.prepare(GENERATOR, checks={"quality": {"max_drift": 0.3}})["gate"]["verdict"] == "warn"


def test_the_version_holds_its_report_and_page(kitchen):  # noqa: F811
    kitchen.write_raw("a.jsonl", corpus(100))
    version = kitchen.version(kitchen.prepare(GENERATOR)).version
    report = json.loads(kitchen.datasets.read_file(version, "report.json"))
    assert report["checks"]["verdict"] == "pass"
    assert report["profiles"]["train"]["documents"] == report["documents_by_split"]["train"]
    assert sum(report["profiles"]["train"]["length_histogram"].values()) == report["documents_by_split"]["train"]
    assert kitchen.datasets.read_file(version, "report.html").startswith(b"<!doctype html>")
