"""From the pipeline file to the prepare job: what decides its name, and what evaluation sets become."""

from __future__ import annotations

import json

import pytest
from fixtures_prepare import kitchen  # noqa: F401  (a pytest fixture)

from deepseek_ops.core.config import load_pipeline
from deepseek_ops.core.records import GitRef, RunManifest
from deepseek_ops.data import StoreBlobs
from deepseek_ops.pipeline.datasets import (
    UnknownEvaluationSetError,
    gate_lines,
    prepare_job,
    raw_of,
)
from deepseek_ops.pipeline.runs import RunPlan


class Stores:
    """The stores of a run, as a hook gives them."""

    def __init__(self, store):
        from deepseek_ops.adapters.stores import open_store

        self.blobs = StoreBlobs(store)
        self.at = open_store


@pytest.fixture
def planned(kitchen):  # noqa: F811
    """Return the job that a pipeline file's data section asks for."""

    def plan(data):
        (kitchen.code / "eval.jsonl").write_text(json.dumps({"question": "who is it"}))
        (kitchen.code / "notes.md").write_text("x")
        (kitchen.raw / "a.jsonl").write_text(json.dumps({"id": "1", "text": "one"}))
        config = load_pipeline(
            json.dumps({"data": {"raw": f"file://{kitchen.raw}/", "dataset": "corpus", **data}}), file="f"
        )
        blobs = StoreBlobs(kitchen.store)
        code = blobs.put(json.dumps(blobs.put_folder(kitchen.code).dump()).encode())
        source = GitRef(repository="r", name="refs/heads/main", commit="a" * 40)
        manifest = RunManifest(
            name="m", source=source, tree="b" * 40, config_digest="c" * 64, environment="e", software="1"
        )
        run = RunPlan(manifest=manifest, code=code)
        raw = raw_of(config, run, Stores(kitchen.store), kitchen.datasets)
        return prepare_job(config, run, blobs, raw, kitchen.datasets)

    return plan


def test_the_raw_data_is_a_version_with_lineage(planned, kitchen):  # noqa: F811
    raw = planned({}).payload["raw"]
    assert (raw["name"], raw["version"]) == ("corpus-raw", kitchen.datasets.resolve("corpus-raw"))


def test_limits_change_the_job_but_not_its_name_and_parameters_change_both(planned):
    plain, roomy = planned({}), planned({"limits": {"memory": "1GiB", "time": "1h", "cpu": "10m"}})
    assert plain.name == roomy.name
    assert (roomy.payload["limits"]["memory_bytes"], roomy.timeout_seconds) == (1 << 30, 3600)
    assert roomy.payload["limits"]["cpu_seconds"] == 600
    assert planned({"parameters": {"minimum": 3}}).name != plain.name
    assert planned({"checks": {"duplicates": {"near": "warn"}}}).name != plain.name


def test_evaluation_sets_are_resolved_to_versions_and_files(planned, kitchen):  # noqa: F811
    kitchen.raw.joinpath("a.jsonl").write_text("{}")
    version = kitchen.datasets.commit(kitchen.raw, name="quiz", message="m", author="a")
    against = ["eval.jsonl", {"name": "other", "dataset": "quiz", "fields": ["question"]}]
    first, second = planned({"checks": {"contamination": {"against": against}}}).payload["evaluation"]
    assert first == {"name": "eval.jsonl", "fields": [], "path": "eval.jsonl"}
    assert second == {"name": "other", "fields": ["question"], "dataset": version.dump(), "pattern": "*"}


def test_a_set_that_the_commit_does_not_have_is_refused_by_name(planned):
    with pytest.raises(UnknownEvaluationSetError, match=r"data\.checks\.contamination\.against: gone\.jsonl"):
        planned({"checks": {"contamination": {"against": ["gone.jsonl"]}}})


def test_a_set_in_a_page_of_text_is_part_of_the_job(planned):
    files = {one["path"] for one in planned({}).payload["code"]["files"]}
    named = planned({"checks": {"contamination": {"against": ["notes.md"]}}}).payload["code"]["files"]
    assert "notes.md" not in files
    assert "notes.md" in {one["path"] for one in named}


def test_findings_become_lines_and_a_clean_result_none():
    finding = {"check": "a.b", "action": "warn", "count": 1, "problem": "It is so.", "remedy": "Change it."}
    gate = {"verdict": "warn", "findings": [finding], "figures": {}}
    assert gate_lines({"gate": gate}) == ["warn: a.b: It is so. Change it."]
    assert gate_lines({}) == []
