"""A model version is whole or not there: under races, after kill -9 at any step, and when somebody damages it."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fixtures_registry import Parts, folder_registry, make_export, make_files, make_parts
from fixtures_s3 import fresh_s3_store, s3_server  # noqa: F401  (fixtures)

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.adapters.stores import open_store
from deepseek_ops.core.errors import IntegrityError, ObjectNotFoundError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import FileEntry, FileSet, ModelVersion, digest_of
from deepseek_ops.data import StoreBlobs
from deepseek_ops.registry import (
    ALIAS_KIND,
    REGISTRY_KIND,
    VERSION_KIND,
    InvalidBundleError,
    Registry,
    VersionNotFoundError,
    verify,
)
from deepseek_ops.registry.layout import bundle_key, claimed_versions


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return folder_registry(tmp_path)


def parts_for(registry: Registry, folder: Path, number: int = 0, name: str = "tiny") -> Parts:
    assert isinstance(registry.blobs, StoreBlobs)
    return make_parts(registry.blobs, folder, number, name)


def register(registry: Registry, parts: Parts) -> ModelVersion:
    return registry.register(
        manifest=parts.manifest,
        checkpoint=parts.checkpoint,
        exports=parts.exports,
        evaluations=parts.evaluations,
        metrics={"usd": 0.02},
        actor="ada",
        run="run-1",
    )


# --- what a version is ---


def test_a_registered_version_is_complete_by_itself(registry: Registry, tmp_path: Path) -> None:
    version = register(registry, parts_for(registry, tmp_path))
    folder = tmp_path / "registry" / "v0.1.0"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()) == [
        "README.md",
        "bundle.json",
        "evaluations/quick-check/items.jsonl",
        "onnx/model.onnx",
        "safetensors/config.json",
        "safetensors/model.safetensors",
        "safetensors/tokenizer/vocab.json",
    ]
    assert (version.version, version.bundle_key) == ("0.1.0", "v0.1.0/bundle.json")
    assert version.bundle == digest_of((folder / "bundle.json").read_bytes())
    assert version.metrics == {"training_loss": 2.5, "val_loss": 2.75, "quick-check.val_loss": 2.7, "usd": 0.02}
    report = registry.verify()
    assert (report.ok, report.versions, report.num_files) == (True, ("0.1.0",), 6)
    assert (folder / "README.md").read_text().startswith("---\nlibrary_name: transformers\n")

    (tmp_path / "copy").mkdir()
    folder.rename(tmp_path / "copy" / "v0.1.0")
    fetched = Registry(open_store(f"file://{tmp_path}/copy"), registry.blobs, registry.facts)
    fetched.fetch("0.1.0", "safetensors", tmp_path / "model")
    assert (tmp_path / "model" / "tokenizer" / "vocab.json").read_bytes() == b'{"a": 0}'


def test_facts_mirror_the_version_and_the_audit_log_names_who(registry: Registry, tmp_path: Path) -> None:
    version = register(registry, parts_for(registry, tmp_path))
    fact = registry.facts.get(VERSION_KIND, "tiny/0.1.0")
    assert fact is not None
    assert (ModelVersion.load(fact.body), fact.run) == (version, "run-1")
    where = registry.facts.get(REGISTRY_KIND, "tiny")
    assert where is not None
    assert where.body == {"uri": registry.store.uri}
    [(_, _, event)] = registry.facts.audit(subject="model/tiny/0.1.0")
    assert (event.actor, event.action, event.details["bundle"]) == ("ada", "registered", version.bundle)


def test_registering_the_same_run_again_returns_the_version_that_exists(registry: Registry, tmp_path: Path) -> None:
    parts = parts_for(registry, tmp_path)
    first = register(registry, parts)
    before = snapshot(tmp_path / "registry")
    rebuilt = registry.blobs.put_folder(make_files(tmp_path / "onnx-again", {"model.onnx": b"built again"}))
    again = register(registry, replace(parts, exports=[make_export(parts.checkpoint.model, rebuilt)]))
    assert again == first
    assert snapshot(tmp_path / "registry") == before
    assert len(registry.facts.audit()) == 1


def test_each_run_gets_the_next_number_and_versions_come_newest_first(registry: Registry, tmp_path: Path) -> None:
    for number in range(11):
        register(registry, parts_for(registry, tmp_path, number))
    numbers = [version.version for version in registry.versions("tiny")]
    assert numbers == [f"0.{number}.0" for number in range(11, 0, -1)]
    assert registry.versions("other") == []


def test_two_models_may_share_a_registry(registry: Registry, tmp_path: Path) -> None:
    register(registry, parts_for(registry, tmp_path, 1))
    register(registry, parts_for(registry, tmp_path, 2, name="other"))
    assert [version.version for version in registry.versions("other")] == ["0.2.0"]
    assert registry.verify("other").versions == ("0.2.0",)
    with pytest.raises(InvalidBundleError, match=r"v0\.2\.0 of .* is a version of other"):
        registry.resolve("tiny", "0.2.0")


def test_a_file_that_is_not_in_the_blobs_leaves_no_version(registry: Registry, tmp_path: Path) -> None:
    parts = parts_for(registry, tmp_path)
    missing = FileSet(files=(FileEntry(path="model.onnx", size=4, digest=digest_of(b"gone")),))
    with pytest.raises(ObjectNotFoundError, match=digest_of(b"gone")):
        register(registry, replace(parts, exports=[make_export(parts.checkpoint.model, missing)]))
    assert registry.versions() == []
    assert registry.facts.find(VERSION_KIND) == []
    report = registry.verify()
    assert (report.ok, report.unfinished) == (True, ("0.1.0",))
    with pytest.raises(VersionNotFoundError, match=r"v0\.1\.0; it has no versions"):
        registry.read_bundle("0.1.0")


# --- races ---


def test_of_registrars_at_the_same_time_each_gets_a_number_of_its_own(registry: Registry, tmp_path: Path) -> None:
    several = [parts_for(registry, tmp_path, number) for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda parts: register(registry, parts), several))
    assert sorted(version.version for version in found) == [f"0.{number}.0" for number in range(1, 7)]
    assert {version.manifest.seed for version in registry.versions()} == set(range(6))
    assert registry.verify().ok


def test_one_run_that_is_registered_many_times_at_once_is_one_version(registry: Registry, tmp_path: Path) -> None:
    parts = parts_for(registry, tmp_path)
    with ThreadPoolExecutor(6) as pool:
        found = set(pool.map(lambda _: register(registry, parts).version, range(6)))
    assert len(found) == 1
    assert [version.version for version in registry.versions()] == list(found)
    assert registry.verify().ok


# --- kill -9 ---


class Deadly:
    """Passes calls on, and kills its process before or after one of the writes that share its counter."""

    def __init__(
        self, inner: object, writes: set[str], counter: itertools.count[int], deadly: tuple[int, bool]
    ) -> None:
        self._inner, self._writes, self._counter, self._deadly = inner, writes, counter, deadly

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name not in self._writes:
            return method

        def call(*args: object, **kwargs: object) -> object:
            number = next(self._counter)
            if (number, False) == self._deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            result = method(*args, **kwargs)
            if (number, True) == self._deadly:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call


def killed_at(n: int, after: bool, folder: Path, act: Callable[[Registry], object]) -> bool:
    """Run ``act`` in a child that is killed at its n-th write; return whether it was."""

    def child() -> None:
        counter, deadly = itertools.count(1), (n, after)
        registry = folder_registry(folder)
        store: Any = Deadly(registry.store, {"create", "put_blob"}, counter, deadly)
        facts: Any = Deadly(registry.facts, {"insert", "update", "append_audit"}, counter, deadly)
        act(Registry(store, registry.blobs, facts))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_a_registrar_killed_at_any_write_leaves_nothing_or_all_and_a_retry_completes_it(
    tmp_path: Path, after: bool
) -> None:
    n = 0
    while True:
        n += 1
        folder = tmp_path / str(n)
        folder.mkdir()
        registry = folder_registry(folder)
        parts = parts_for(registry, folder)
        killed = killed_at(n, after, folder, lambda one, parts=parts: register(one, parts))  # type: ignore[misc]
        for version in registry.versions():
            assert verify(registry.store, version=version.version).ok, f"write {n}"
        done = register(registry, parts)
        assert registry.versions() == [done], f"write {n}"
        assert registry.verify().ok
        assert [fact.key for fact in registry.facts.find(VERSION_KIND)] == [f"tiny/{done.version}"]
        assert 1 <= len(registry.facts.audit()) <= 2, "an event may be written twice, never lost"
        if not killed:
            break
    assert n == 3 + 6 + 3 + 1, "claim, identity, bundle; six files; registry, audit, version; and one without a kill"


@pytest.mark.parametrize("n", [1, 2, 3])
def test_who_moves_an_alias_and_is_killed_leaves_nothing_or_all_and_a_retry_completes_it(
    tmp_path: Path, n: int
) -> None:
    registry = folder_registry(tmp_path)
    register(registry, parts_for(registry, tmp_path))

    def promote(one: Registry) -> None:
        one.set_alias("tiny", "champion", "0.1.0", actor="ada", expected="")

    assert killed_at(n, after=True, folder=tmp_path, act=promote)
    promote(registry)
    assert len(registry.history("tiny", "champion")) == 1
    assert [fact.key for fact in registry.facts.find(ALIAS_KIND)] == ["tiny/champion"]
    assert len(registry.facts.audit(subject="alias/tiny/champion")) in (1, 2)
    assert registry.verify().ok


# --- damage ---


def damage_flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("target", "damage", "problem"),
    [
        ("safetensors/model.safetensors", damage_flip, "changed"),
        ("safetensors/model.safetensors", lambda path: path.write_bytes(b""), "changed"),
        ("onnx/model.onnx", Path.unlink, "missing"),
        ("README.md", damage_flip, "changed"),
        ("onnx/extra.bin", lambda path: path.write_bytes(b"x"), "unexpected"),
        ("bundle.json", damage_flip, "damaged"),
        ("bundle.json", lambda path: path.write_bytes(path.read_bytes().replace(b"2.75", b"1.75")), "changed"),
        ("bundle.json", Path.unlink, "missing"),
    ],
)
def test_damage_is_found_and_named(
    registry: Registry, tmp_path: Path, target: str, damage: Callable[[Path], object], problem: str
) -> None:
    register(registry, parts_for(registry, tmp_path, 1))
    register(registry, parts_for(registry, tmp_path, 2))
    damage(tmp_path / "registry" / "v0.2.0" / target)
    report = registry.verify()
    assert not report.ok
    assert {(one.version, one.path, one.problem) for one in report.problems} == {("0.2.0", target, problem)}
    assert registry.verify("tiny", "0.1.0").ok
    assert not registry.verify("tiny", "v0.2.0").ok


def test_a_version_that_vanished_with_its_claim_is_missed_by_the_facts(registry: Registry, tmp_path: Path) -> None:
    register(registry, parts_for(registry, tmp_path))
    for path in [*(tmp_path / "registry" / "v0.1.0").rglob("*"), tmp_path / "registry" / "versions" / "v0.1.0.json"]:
        if path.is_file():
            path.unlink()
    assert [(one.version, one.problem) for one in registry.verify().problems] == [("0.1.0", "missing")]
    assert verify(registry.store).ok, "the store alone cannot know"


def test_verifying_a_version_that_does_not_exist_is_an_error(registry: Registry) -> None:
    with pytest.raises(VersionNotFoundError, match=r"v3\.0\.0"):
        registry.verify("tiny", "3.0.0")


def test_a_damaged_file_is_not_handed_out(registry: Registry, tmp_path: Path) -> None:
    register(registry, parts_for(registry, tmp_path))
    damage_flip(tmp_path / "registry" / "v0.1.0" / "safetensors" / "model.safetensors")
    with pytest.raises(IntegrityError, match=r"model\.safetensors"):
        registry.fetch("0.1.0", "safetensors", tmp_path / "model")
    assert not (tmp_path / "model" / "model.safetensors").exists()


# --- rebuild ---


def test_the_facts_can_be_rebuilt_from_the_store_alone(registry: Registry, tmp_path: Path) -> None:
    for number in range(2):
        register(registry, parts_for(registry, tmp_path, number))
    registry.set_alias("tiny", "champion", "0.1.0", actor="ada")
    registry.set_alias("tiny", "champion", "0.2.0", actor="ada")
    empty = replace(registry, facts=open_facts(f"sqlite:///{tmp_path}/new.db"))
    report = empty.rebuild()
    assert (report.versions, report.aliases) == (2, 1)
    assert report.restored == (
        "registry/tiny",
        "model_version/tiny/0.1.0",
        "model_version/tiny/0.2.0",
        "alias/tiny/champion",
    )
    for kind in (VERSION_KIND, ALIAS_KIND, REGISTRY_KIND):
        assert bodies(empty, kind) == bodies(registry, kind)
    assert empty.rebuild().restored == ()
    assert len(empty.facts.audit()) == 1, "a rebuild that changed nothing is not an event"


def test_a_rebuild_corrects_facts_that_are_wrong(registry: Registry, tmp_path: Path) -> None:
    register(registry, parts_for(registry, tmp_path))
    fact = registry.facts.get(VERSION_KIND, "tiny/0.1.0")
    assert fact is not None
    registry.facts.update(fact, {**fact.body, "bundle": "0" * 64})
    assert not registry.verify().ok
    assert registry.rebuild("tiny").restored == ("model_version/tiny/0.1.0",)
    assert registry.verify().ok


def test_a_damaged_store_is_not_copied_into_the_facts(registry: Registry, tmp_path: Path) -> None:
    register(registry, parts_for(registry, tmp_path))
    damage_flip(tmp_path / "registry" / bundle_key("0.1.0"))
    with pytest.raises(IntegrityError, match=r"v0\.1\.0/bundle\.json"):
        replace(registry, facts=open_facts(f"sqlite:///{tmp_path}/new.db")).rebuild()


# --- S3 ---


def test_all_of_it_on_a_real_s3_server(fresh_s3_store: Callable[[], ObjectStore], tmp_path: Path) -> None:  # noqa: F811
    registry = Registry(fresh_s3_store(), StoreBlobs(fresh_s3_store()), open_facts(f"sqlite:///{tmp_path}/facts.db"))
    several = [parts_for(registry, tmp_path, number) for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda parts: register(registry, parts), [*several, several[0]]))
    kept = [version.version for version in registry.versions()]
    assert len(kept) == 4
    assert claimed_versions(registry.store)[:1] == ["0.1.0"]
    for version in reversed(kept):
        registry.set_alias("tiny", "champion", version, actor="ada")
    assert [entry.version for entry in registry.history("tiny", "champion")] == kept
    assert registry.resolve("tiny", "champion").version == kept[0]
    assert registry.verify().ok
    registry.fetch(kept[0], "onnx", tmp_path / "onnx")
    assert (tmp_path / "onnx" / "model.onnx").read_bytes().startswith(b"onnxweights")
    registry.store.delete([f"v{kept[0]}/onnx/model.onnx"])
    assert [(one.path, one.problem) for one in registry.verify().problems] == [("onnx/model.onnx", "missing")]
    empty = replace(registry, facts=open_facts(f"sqlite:///{tmp_path}/new.db"))
    assert (empty.rebuild().versions, bodies(empty, ALIAS_KIND)) == (4, bodies(registry, ALIAS_KIND))


def bodies(registry: Registry, kind: str) -> dict[str, Mapping[str, object]]:
    return {fact.key: fact.body for fact in registry.facts.find(kind)}


def snapshot(folder: Path) -> Sequence[tuple[str, bytes]]:
    def files() -> Iterator[tuple[str, bytes]]:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                yield str(path.relative_to(folder)), path.read_bytes()

    return list(files())
