"""Equal content from another branch is registered once, and the run that brings it is linked."""

from __future__ import annotations

import json

import pytest
from fixtures_registry import Parts, make_parts
from fixtures_triggers import connect

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.adapters.stores import open_store
from deepseek_ops.airflow.operators.registry import RecordExperimentOperator, RegisterModelOperator
from deepseek_ops.core.records import DatasetVersion, FileEntry, FileSet, GitRef, ModelVersion
from deepseek_ops.data.blobs import StoreBlobs
from deepseek_ops.pipeline.identity import linked
from deepseek_ops.pipeline.releases import EXPERIMENT
from deepseek_ops.pipeline.runs import RunPlan

DATASET = DatasetVersion(name="tiny", version="d" * 64, tree="b" * 64, num_files=2, num_bytes=9)
PIPELINE = b"name: tiny\ntraining: {seed: 1}\n"


class Told(dict):
    def xcom_push(self, key, value):
        self[key] = value


class Place:
    def __init__(self, folder) -> None:
        self.blobs = StoreBlobs(open_store(f"file://{folder / 'store'}", {}))
        self.facts = open_facts(f"sqlite:///{folder / 'facts.db'}")
        self.parts: Parts = make_parts(self.blobs, folder)

    def run(self, number: int, *, pipeline: bytes = PIPELINE, readme: bytes = b"", nonce: str = "") -> RunPlan:
        """Return the plan of a commit of its own, on a branch of its own."""
        files = {"deepseek/prepare.py": b"code", "README.md": readme}
        entries = [
            FileEntry(path=path, size=len(data), digest=self.blobs.put(data)) for path, data in sorted(files.items())
        ]
        ref = GitRef(repository="https://h/m.git", name=f"refs/heads/exp/{number}", commit=f"{number:040x}")
        manifest = self.parts.manifest.evolve(source=ref, tree=f"{number:040x}", config_digest=self.blobs.put(pipeline))
        code = self.blobs.put(json.dumps(FileSet(files=tuple(entries)).dump()).encode())
        return RunPlan(manifest=manifest, code=code, nonce=nonce)

    def register(self, run: RunPlan, run_id: str) -> tuple[ModelVersion, Told]:
        told = Told()
        operator = RegisterModelOperator(
            task_id="register",
            run=run.dump(),
            dataset=DATASET.dump(),
            checkpoint=self.parts.checkpoint.dump(),
            evaluations=[one.dump() for one in self.parts.evaluations],
            exports=[one.dump() for one in self.parts.exports],
        )
        return ModelVersion.load(operator.execute({"run_id": run_id, "ti": told})), told


@pytest.fixture
def place(tmp_path, monkeypatch):
    connect(monkeypatch, "deepseek_ops_store", conn_type="deepseek_store", host=f"file://{tmp_path / 'store'}")
    connect(monkeypatch, "deepseek_ops_facts", conn_type="deepseek_facts", host=f"sqlite:///{tmp_path / 'facts.db'}")
    return Place(tmp_path)


def test_the_second_run_of_equal_content_gives_the_version_that_is_there(place):
    first, told = place.register(place.run(1), "run-1")
    assert "note" not in told
    assert linked(place.facts, "run-1") is None
    second, told = place.register(place.run(2, readme=b"# Other words"), "run-2")
    assert second == first
    assert second.manifest.source.name == "refs/heads/exp/1"
    assert told["note"] == f"the same content as tiny 0.1.0, trained by run run-1 from commit {'0' * 12}"
    assert linked(place.facts, "run-2").version == "0.1.0"
    assert place.register(place.run(2, readme=b"# Other words"), "run-2")[0] == first, "a task that is tried again"
    assert place.register(place.run(1), "run-1")[0] == first
    assert linked(place.facts, "run-1") is None, "the run that trained it is no copy of itself"


def test_another_seed_or_a_wish_to_train_again_is_another_version(place):
    place.register(place.run(1), "run-1")
    other, _ = place.register(place.run(2, pipeline=PIPELINE.replace(b"seed: 1", b"seed: 2")), "run-2")
    again, _ = place.register(place.run(3, nonce="run-3"), "run-3")
    assert [other.version, again.version] == ["0.2.0", "0.3.0"]
    assert linked(place.facts, "run-2") is None


def test_a_linked_run_records_no_second_experiment(place):
    version, _ = place.register(place.run(1), "run-1")
    recorded = {"tag": "exp-20260101-a", "commit": f"{7:040x}", "release_run": "release__tiny-0.1.0"}
    place.facts.insert(EXPERIMENT, "tiny/0.1.0", recorded)
    place.register(place.run(2), "run-2")
    operator = RecordExperimentOperator(
        task_id="record", dataset=DATASET.dump(), plan={}, checkpoint={}, version=version.dump()
    )
    assert operator.execute({"run_id": "run-2"}) == recorded
