"""The prepare job: the same version from the same input, no secret in foreign code, one clear error each."""

from __future__ import annotations

import json
import os

import pytest
from fixtures_launcher import until
from fixtures_trainer import FIRST_JOB, SECRET, dataset, lab, shared_bench  # noqa: F401  (pytest fixtures)

from deepseek_ops.core.jobs import JobPhase
from deepseek_ops.core.records import DatasetVersion
from deepseek_ops.data import DatasetRepository
from deepseek_ops.jobs.tokens import TokenSplit

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(lab, dataset, tmp_path_factory):  # noqa: F811
    """The dataset's files, checked out."""
    target = tmp_path_factory.mktemp("dataset") / "files"
    DatasetRepository.open(lab.store).checkout(dataset.version, target)
    return target


def texts_of(folder, split):
    return [json.loads(line) for line in (folder / "documents" / f"{split}.jsonl").read_text().splitlines()]


def test_the_same_input_gives_the_same_version(lab, dataset):  # noqa: F811
    again = lab.result(lab.prepare("prepare-again"))
    assert again["dataset"] == dataset.dump()


@pytest.mark.parametrize(("path", "same"), [("model.json", True), ("mine.py", False)])
def test_a_push_makes_a_new_version_only_if_it_touches_code(lab, dataset, tmp_path, path, same):  # noqa: F811
    lab.blobs.fetch_folder(lab.code, tmp_path / "code")
    with (tmp_path / "code" / path).open("a") as file:
        file.write("\n# another line\n")
    changed = lab.blobs.put_folder(tmp_path / "code")
    again = DatasetVersion.load(lab.result(lab.prepare(f"prepare-{path}", code=changed))["dataset"])
    assert again.tree == dataset.tree, "the same data"
    assert (again.version == dataset.version) is same


def test_the_version_holds_documents_tokens_and_tokenizer(folder, dataset):  # noqa: F811
    report = json.loads((folder / "report.json").read_text())
    assert dataset.splits == report["documents_by_split"]
    for split in ("train", "val", "test"):
        assert len(texts_of(folder, split)) == report["documents_by_split"][split] > 0
    assert sum(report["tokens_by_split"].values()) == report["tokens"]
    assert 1.5 < report["characters_per_token"] < 6


def test_the_tokens_are_the_documents(folder):
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer" / "tokenizer.json"))
    samples = TokenSplit(folder / "tokens", "val", length=16)
    stream = [
        *samples.samples([0])[0],
        *(token for i in range(1, len(samples)) for token in samples.samples([i])[0][1:]),
    ]
    text = "".join(document["text"] for document in texts_of(folder, "val"))
    assert text.startswith(tokenizer.decode(stream))


def test_foreign_code_sees_no_secret():
    log, _ = shared_bench().lab.launcher.logs(FIRST_JOB)
    variables = next(line for line in log.splitlines() if line.startswith("VARIABLES")).split()[1:]
    assert "PYTHONPATH" in variables
    assert not [name for name in variables if name.startswith(("AWS_", "DEEPSEEK_OPS"))]
    assert SECRET not in log


def test_duplicates_and_leaks_are_dropped(lab, dataset, tmp_path):  # noqa: F811
    result = lab.result(lab.prepare("prepare-leaky", "mine:leaky"))
    assert result["report"]["dropped_duplicates"] == 30
    DatasetRepository.open(lab.store).checkout(DatasetVersion.load(result["dataset"]).version, tmp_path / "files")
    homes: dict[str, set[str]] = {}
    for split in ("train", "val", "test"):
        for document in texts_of(tmp_path / "files", split):
            homes.setdefault(" ".join(document["text"].casefold().split()), set()).add(split)
    assert max(map(len, homes.values())) == 1
    assert result["report"]["dropped_leaks"] > 0


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("mine:fail", "ValueError: the corpus is a fish"),
        ("mine:nothing", "tokenizer.json or tokenizer_config.json is missing"),
        ("mine:garbage", "documents.jsonl, line 2: it lacks an id or a text"),
        ("mine:gone", "has no attribute 'gone'"),
        ("theirs:prepare", "No module named 'theirs'"),
    ],
)
def test_a_broken_callable_fails_once_and_says_why(lab, target, said):  # noqa: F811
    name = lab.prepare("prepare-" + target.replace(":", "-"), target)
    status = lab.settle(name)
    assert status.phase is JobPhase.FAILED
    assert said in status.reason
    assert status.restarts == 0


def test_a_killed_callable_may_be_tried_again(lab):  # noqa: F811
    status = lab.settle(lab.prepare("prepare-killed", "mine:killed"))
    assert status.phase is JobPhase.LOST
    assert "SIGKILL" in status.reason


def test_a_stop_leaves_no_process_of_the_callable(lab):  # noqa: F811
    name = lab.prepare("prepare-endless", "mine:endless")
    mark = lab.root / "jobs" / name / "work" / "scratch" / "child.pid"
    child = int(until(lambda: mark.exists() and mark.read_text(), within=60))
    lab.launcher.stop(name, "enough")
    assert lab.settle(name).phase is JobPhase.STOPPED
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
