"""Facts, registries and Git repositories are asked what they name, before anything is deleted."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fixtures_gc import NOTHING_KEPT, commit, fill, is_whole
from fixtures_git import Developer, file_developer, git_server, http_developer  # noqa: F401
from typer.testing import CliRunner

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.adapters.facts.store import SqlFacts
from deepseek_ops.adapters.stores import open_store
from deepseek_ops.adapters.stores.local import LocalStore
from deepseek_ops.cli.main import build
from deepseek_ops.core.objects import blob_key
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import canonical_json
from deepseek_ops.data import DatasetPointer, DatasetRepository, StoreBlobs, pointer_path, pointer_text
from deepseek_ops.pipeline.collection import CollectionOutcome, Witnesses, collect


class Opener:
    def at(self, uri: str) -> ObjectStore:
        return open_store(uri)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path / "store")


@pytest.fixture
def facts(tmp_path: Path) -> Iterator[SqlFacts]:
    with open_facts(f"sqlite:///{tmp_path}/facts.db") as opened:
        yield opened


def gone(store: ObjectStore, witnesses: Witnesses) -> CollectionOutcome:
    """Delete what the witnesses do not name; return what the last call said."""
    time.sleep(0.02)
    for _ in range(2):
        outcome = collect(store, NOTHING_KEPT, witnesses, delete=True, say=lambda _line: None)
    return outcome


@pytest.mark.parametrize("where", ["file_developer", "http_developer"])
def test_pointers_of_every_ref_and_commit_keep_versions_and_weights(
    store: LocalStore, facts: SqlFacts, tmp_path: Path, where: str, request: pytest.FixtureRequest
) -> None:
    developer: Developer = request.getfixturevalue(where)
    versions = [commit(store, fill(tmp_path / f"v{seed}", seed)) for seed in range(5)]
    weight, stray = (StoreBlobs(store).put(data) for data in (b"weight", b"stray"))
    pointers = [pointer_text(DatasetPointer.of(version, store.uri)) for version in versions]
    lfs = f"version https://git-lfs.github.com/spec/v1\noid sha256:{weight}\nsize 6\n"
    path = pointer_path("corpus")
    developer.push_commit({path: pointers[0], "w.bin": lfs})
    developer.push_commit({path: pointers[1], "w.bin": "gone", "large.txt": "x" * 9000})
    developer.push_commit({"a": "b"}, branch="exp/odd", message=f"Train\n\nDataset-Version: {versions[2].version}")
    gone(store, Witnesses(facts=facts, repositories=[developer.remote]))
    assert [whole(store, version.version) for version in versions] == [True, True, True, False, True]
    assert store.head(blob_key(weight)) is not None
    assert store.head(blob_key(stray)) is None
    gone(store, Witnesses(facts=facts, repositories=[developer.remote], history=False))
    assert [whole(store, version.version) for version in versions] == [False, True, True, False, True]
    assert store.head(blob_key(weight)) is None


def whole(store: ObjectStore, version: str) -> bool:
    repository = DatasetRepository(store)
    return store.head(f"trees/{repository.load(version).tree}") is not None and is_whole(store, version)


def test_facts_and_the_registries_they_name_keep_blobs(store: LocalStore, facts: SqlFacts, tmp_path: Path) -> None:
    blobs = StoreBlobs(store)
    code = blobs.put_folder(fill(tmp_path / "code", 1))
    listing = blobs.put(json.dumps(code.dump()).encode())
    model, stray = blobs.put(b"model"), blobs.put(b"stray")
    version = commit(store, fill(tmp_path / "v1", 1)).version
    commit(store, fill(tmp_path / "v2", 2))
    facts.insert("result", "prepare-1", {"dataset": {"version": version}})
    facts.insert("plan", "run-1", {"code": listing})
    registry = tmp_path / "registry"
    bundle = {"exports": [{"files": {"files": [{"path": "model.safetensors", "size": 5, "digest": model}]}}]}
    open_store(str(registry)).create("versions/v0.1.0.json", canonical_json(bundle))
    facts.insert("registry", "tiny", {"uri": registry.as_uri()})
    gone(store, Witnesses(facts=facts, repositories=(), stores=Opener()))
    assert is_whole(store, version)
    for entry in code.files:
        blobs.verify(entry)
    assert blobs.get(model) == b"model"
    assert store.head(blob_key(stray)) is None


def test_a_repository_that_only_the_facts_know_of_keeps_everything(
    store: LocalStore,
    facts: SqlFacts,
    tmp_path: Path,
    file_developer: Developer,  # noqa: F811
) -> None:
    old = commit(store, fill(tmp_path / "v1", 1)).version
    commit(store, fill(tmp_path / "v2", 2))
    source = {"repository": "https://host/other.git", "name": "refs/heads/main", "commit": "1" * 40}
    facts.insert("run", "1", {"manifest": {"source": source}})
    outcome = gone(store, Witnesses(facts=facts, repositories=[file_developer.remote]))
    assert is_whole(store, old)
    assert outcome.plan is not None
    assert any("https://host/other.git" in note for note in outcome.plan.notes)


def test_a_registry_that_cannot_be_opened_keeps_its_blobs(store: LocalStore, facts: SqlFacts) -> None:
    stray = StoreBlobs(store).put(b"stray")
    facts.insert("registry", "tiny", {"uri": "s3://elsewhere/registry"})
    outcome = gone(store, Witnesses(facts=facts, repositories=()))
    assert store.head(blob_key(stray)) is not None
    assert outcome.plan is not None
    assert any("s3://elsewhere/registry was not read" in note for note in outcome.plan.notes)


class TestCommand:
    def run(self, store: LocalStore, *more: str, status: int = 0) -> dict[str, object]:
        app = build(["data"])
        arguments = ["data", "gc", "--store", str(store.folder), "--grace-days", "0", "--keep-days", "0", *more]
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == status, result.output
        loaded: dict[str, object] = json.loads(result.stdout)
        return loaded

    def test_looks_first_then_plans_then_deletes(
        self,
        store: LocalStore,
        tmp_path: Path,
        file_developer: Developer,  # noqa: F811
    ) -> None:
        versions = [commit(store, fill(tmp_path / f"v{seed}", seed)).version for seed in range(3)]
        file_developer.push_commit({"x.dataset.yaml": f"version: {versions[0]}\n"})
        with open_facts(f"sqlite:///{tmp_path}/facts.db"):
            pass
        asked = ["--keep-versions", "1", "--repository", str(file_developer.bare)]
        asked += ["--facts", f"sqlite:///{tmp_path}/facts.db"]
        time.sleep(0.02)
        before = sorted(info.key for info in store.list(""))
        seen = self.run(store, *asked)
        assert seen["plan"]["dropped_versions"] == 1  # type: ignore[index]
        assert sorted(info.key for info in store.list("")) == before
        self.run(store, *asked, "--delete")
        waiting = self.run(store, *asked, "--delete", status=75)
        assert 86_000 < float(str(waiting["waiting_seconds"])) < 86_400
        assert all(whole(store, version) for version in versions)
        for info in list(store.list("gc/")):
            os.utime(store.folder / info.key, (info.modified - 90_000,) * 2)
        swept = self.run(store, *asked, "--delete")
        assert swept["swept"]["deleted"]["roots"]["objects"] == 1  # type: ignore[index]
        assert [whole(store, version) for version in versions] == [True, False, True]

    def test_says_what_it_did_not_ask(self, store: LocalStore, tmp_path: Path) -> None:
        commit(store, fill(tmp_path / "v1", 1))
        seen = self.run(store)
        assert len(seen["plan"]["notes"]) == 2  # type: ignore[index]
