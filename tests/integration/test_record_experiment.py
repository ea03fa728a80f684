"""What the pipeline records of a registered version, and the release that stands on it."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

import pytest
from fixtures_git import Developer, file_developer, run_git  # noqa: F401
from fixtures_registry import folder_registry, make_parts

from deepseek_ops.adapters.stores import open_store
from deepseek_ops.core.ports import Blobs, ObjectStore
from deepseek_ops.core.records import DatasetVersion, GitRef, Hyperparameters, TrainingPlan
from deepseek_ops.pipeline.experiments import experiments_of
from deepseek_ops.pipeline.releases import create_release, record_experiment

PIPELINE = "name: tiny\nrecords: {{write: {write}}}\n"
DATE = dt.date(2026, 3, 1)


@dataclass
class FolderStores:
    uri: str
    blobs: Blobs

    def at(self, uri: str) -> ObjectStore:
        return open_store(uri)


@pytest.mark.parametrize("write", ["commit", "notes", "tag-only"])
def test_a_registered_version_is_recorded_and_released(
    file_developer: Developer,  # noqa: F811
    tmp_path: Path,
    write: str,
) -> None:
    remote = file_developer.remote
    text = PIPELINE.format(write=write)
    trained = file_developer.push_commit({"deepseek.yaml": text})
    registry = folder_registry(tmp_path / "stores")
    stores = FolderStores(f"file://{tmp_path}/stores/main", registry.blobs)
    parts = make_parts(registry.blobs, tmp_path)
    source = GitRef(repository=remote.url, name="refs/heads/main", commit=trained)
    version = registry.register(
        manifest=parts.manifest.evolve(source=source, config_digest=registry.blobs.put(text.encode())),
        checkpoint=parts.checkpoint,
        evaluations=parts.evaluations,
        exports=parts.exports,
        actor="test",
        run="run-1",
    )
    dataset = DatasetVersion(
        name="corpus", version="d" * 64, tree="e" * 64, num_files=1, num_bytes=1, splits={"train": 1}
    )
    plan = TrainingPlan(dataset=dataset, model={}, hyperparameters=Hyperparameters(learning_rate=0.001, batch_size=8))

    def once(url: str) -> dict[str, object]:
        return record_experiment(
            remote, stores, registry.facts, dataset=dataset, plan=plan, checkpoint=parts.checkpoint,
            version=version, run_id="run-1", date=DATE, tracker_url=url,
        )  # fmt: skip

    recorded = once("https://tracker.example.com/1")
    assert recorded["way"] == write
    assert recorded["on_branch"] is (write == "commit")
    assert (recorded["commit"] == trained) is (write != "commit")
    assert {name: value for name, value in once("https://tracker.example.com/late").items() if name != "on_branch"} == {
        name: value for name, value in recorded.items() if name != "on_branch"
    }
    release = create_release(remote, stores, registry.facts, version, approved_by="Ada")
    (found,) = experiments_of(remote.record_texts())
    assert found.source == ("commit" if write == "commit" else "tag")
    assert (found.tags, found.releases) == ((recorded["tag"],), (release.tag,))
    assert found.record.version == version.version
    assert found.record.tracker_url == "https://tracker.example.com/1"
    assert found.record.hyperparameters["learning_rate"] == 0.001
    compared = found.record.comparisons["val_loss"]
    assert (compared.champion, compared.delta, compared.interval) == ("0.1.0", -0.1, (-0.2, 0.0))
    assert list(remote.notes()) == ([trained] if write == "notes" else [])
    assert run_git(file_developer.bare, "rev-parse", f"{release.tag}^{{commit}}") == recorded["commit"]
