"""Weights across the product: in a run's code, in the registry and its card, and as pointers in Git."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import fixtures_git_lfs
import fixtures_registry
import pytest
from test_init_repository import Person, weights
from typer.testing import CliRunner

from deepseek_ops.adapters.git import open_git
from deepseek_ops.adapters.git_lfs.fetching import WeightNotPushedError
from deepseek_ops.adapters.git_lfs.pointer import LfsPointer, parse_pointer, pointer_text
from deepseek_ops.adapters.stores import open_store
from deepseek_ops.cli.weights import app as weights_app
from deepseek_ops.core.objects import blob_key, lfs_root_key
from deepseek_ops.core.records import Checkpoint, digest_of
from deepseek_ops.data import StoreBlobs
from deepseek_ops.pipeline.runs import code_of, plan_run
from deepseek_ops.pipeline.weight_pointers import pushed_files, registered_files, take_pointers, write_pointers
from deepseek_ops.registry import Registry
from deepseek_ops.registry.weights.ranges import ObjectRanges
from deepseek_ops.registry.weights.reading import read_weights

git_lfs = fixtures_git_lfs.git_lfs
lfs_environment = fixtures_git_lfs.lfs_environment


@pytest.fixture
def store(tmp_path: Path):
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def registry(tmp_path: Path, store) -> Registry:
    from deepseek_ops.adapters.facts import open_facts

    facts = open_facts(f"sqlite:///{tmp_path}/facts.db", migrate=True)
    return Registry(open_store(str(tmp_path / "registry")), StoreBlobs(store), facts)


def put_pointer(folder: Path, path: str, data: bytes) -> None:
    place = folder / path
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(pointer_text(LfsPointer(digest_of(data), len(data))))


class TestRuns:
    def test_a_pointer_becomes_the_object_it_names_without_a_download(self, tmp_path: Path, store):
        store.put_blob(blob_key(digest_of(weights(1))), weights(1))
        put_pointer(tmp_path / "code", "models/base.safetensors", weights(1))
        (tmp_path / "code" / "train.py").write_text("print()\n")
        entries = take_pointers(tmp_path / "code", StoreBlobs(store), store=store.uri)
        assert [(one.path, one.size, one.digest) for one in entries] == [
            ("models/base.safetensors", len(weights(1)), digest_of(weights(1)))
        ]
        assert [path.name for path in (tmp_path / "code").rglob("*") if path.is_file()] == ["train.py"]

    def test_a_weight_that_was_never_pushed_stops_the_run_and_says_how_to_push_it(self, tmp_path: Path, store):
        put_pointer(tmp_path, "base.pt", b"never pushed")
        with pytest.raises(WeightNotPushedError) as caught:
            take_pointers(tmp_path, StoreBlobs(store), store=store.uri)
        for part in ("base.pt", digest_of(b"never pushed"), "git lfs push --object-id origin"):
            assert part in str(caught.value)

    @pytest.mark.slow
    def test_a_planned_run_names_the_pushed_object_in_its_code(self, lfs_environment, tmp_path: Path, store):
        bare = tmp_path / "team" / "model.git"
        subprocess.run(["git", "init", "-q", "--bare", "--initial-branch=main", str(bare)], check=True)
        person = Person(lfs_environment, tmp_path / "clone", tmp_path / "store")
        person.folder.mkdir()
        person.init()
        person.git("remote", "add", "origin", str(bare))
        person.write("models/base.safetensors", weights(1))
        person.commit("Start")
        person.git("push", "--quiet", "origin", "main")
        remote, blobs = open_git(str(bare), cache=tmp_path / "cache"), StoreBlobs(store)
        run = plan_run(remote, blobs, remote.resolve("main"), resolve_base=lambda _config: None, overrides={})
        entries = {entry.path: entry for entry in code_of(blobs, run).files}
        assert entries["models/base.safetensors"].digest == digest_of(weights(1))
        assert entries["models/base.safetensors"].size == len(weights(1))
        assert list(entries) == sorted(entries)
        assert "deepseek/prepare.py" in entries
        blobs.fetch_folder(code_of(blobs, run), tmp_path / "work")
        assert (tmp_path / "work/models/base.safetensors").read_bytes() == weights(1)


def register(registry: Registry, tmp_path: Path, data: bytes):
    folder = fixtures_registry.make_files(tmp_path / "model", {"model.safetensors": data, "config.json": b"{}"})
    checkpoint = Checkpoint(plan="a" * 64, step=1, tokens=1, model=registry.blobs.put_folder(folder))
    return registry.register(manifest=fixtures_registry.make_manifest(), checkpoint=checkpoint)


class TestRegistry:
    def test_a_version_shows_what_its_weights_are(self, registry: Registry, tmp_path: Path):
        version = register(registry, tmp_path, weights(1))
        bundle = registry.read_bundle(version.version)
        assert bundle.weights is not None
        assert (bundle.weights.num_parameters, bundle.weights.dtypes) == (300_000, {"U8": 300_000})
        card = registry.store.get(f"v{version.version}/README.md").decode()
        assert "| Parameters | 300,000 in 1 tensors |" in card
        assert registry.verify().ok

    def test_weights_that_cannot_be_read_are_registered_without(self, registry: Registry, tmp_path: Path):
        version = register(registry, tmp_path, b"no header")
        assert registry.read_bundle(version.version).weights is None

    def test_a_registered_version_is_shown_by_name(self, registry: Registry, tmp_path: Path):
        version = register(registry, tmp_path, weights(1))
        arguments = ["show", f"tiny@{version.version}", "--registry", str(tmp_path / "registry")]
        shown = json.loads(CliRunner().invoke(weights_app, arguments).stdout)
        assert [one["name"] for one in shown["tensors"]] == ["w"]


class TestPointers:
    @pytest.fixture
    def clone(self, lfs_environment, tmp_path: Path) -> Person:
        bare = tmp_path / "team" / "model.git"
        subprocess.run(["git", "init", "-q", "--bare", "--initial-branch=main", str(bare)], check=True)
        person = Person(lfs_environment, tmp_path / "clone", tmp_path / "store")
        person.folder.mkdir()
        person.init()
        person.git("remote", "add", "origin", str(bare))
        return person

    def test_a_registered_file_is_committed_without_an_upload(self, registry, store, clone: Person, tmp_path: Path):
        version = register(registry, tmp_path, weights(1))
        oid = digest_of(weights(1))
        before = (tmp_path / "store" / blob_key(oid)).stat().st_mtime_ns
        arguments = ["lfs", "pointer", f"tiny@{version.version}", "safetensors/model.safetensors"]
        clone.ops(*arguments, "--registry", str(tmp_path / "registry"), "--store", str(tmp_path / "store"))
        assert store.head(lfs_root_key("team/model", oid)) is not None
        clone.commit("Use the released weights")
        assert parse_pointer(clone.git("cat-file", "-p", "HEAD:safetensors/model.safetensors").encode(), file="") == (
            LfsPointer(oid, len(weights(1)))
        )
        clone.git("push", "--quiet", "origin", "main")
        clone.write("lost.bin", pointer_text(LfsPointer("0" * 64, 5)))
        clone.commit("Name nothing")
        assert f"lost.bin is a Git LFS pointer to {'0' * 64}" in clone.git("push", "origin", "main", status=1)
        clone.git("reset", "--quiet", "--hard", "HEAD~1")
        assert (tmp_path / "store" / blob_key(oid)).stat().st_mtime_ns == before
        clone.git("lfs", "pull")
        assert (clone.folder / "safetensors/model.safetensors").read_bytes() == weights(1)

    def test_a_pushed_weight_is_registered_by_its_digest(self, registry, store, clone: Person, tmp_path: Path):
        clone.write("model.safetensors", weights(2))
        clone.commit("Add weights")
        clone.git("push", "--quiet", "origin", "main")
        text = clone.git("cat-file", "-p", "HEAD:model.safetensors").encode()
        checkpoint = Checkpoint(plan="a" * 64, step=1, tokens=1, model=pushed_files(store, {"model.safetensors": text}))
        version = registry.register(manifest=fixtures_registry.make_manifest(), checkpoint=checkpoint)
        assert registry.store.get(f"v{version.version}/safetensors/model.safetensors") == weights(2)

    def test_a_file_of_the_users_is_not_replaced(self, registry, store, tmp_path: Path):
        register(registry, tmp_path, weights(1))
        files = registered_files(registry.store, "tiny", "0.1.0", ("safetensors/*",))
        (tmp_path / "safetensors").mkdir()
        (tmp_path / "safetensors/model.safetensors").write_bytes(b"mine")
        with pytest.raises(Exception, match="exists and is something else"):
            write_pointers(store, tmp_path, files)
        assert (tmp_path / "safetensors/model.safetensors").read_bytes() == b"mine"


def test_the_header_of_a_large_object_costs_kilobytes(tmp_path: Path, store):
    data = weights(1, 64_000_000)
    store.put_blob(blob_key(digest_of(data)), data)
    ranges = ObjectRanges(store, blob_key(digest_of(data)), len(data))
    assert read_weights(ranges).num_parameters == 64_000_000
    assert ranges.num_read < 2000


@pytest.mark.slow
def test_what_torch_and_safetensors_write_is_read_without_them(tmp_path: Path):
    script = """
import sys, torch
from safetensors.torch import save_file
folder = sys.argv[1]
state = {"w": torch.zeros(300, 400, dtype=torch.bfloat16), "b": torch.nn.Parameter(torch.ones(7)),
         "view": torch.zeros(10, 10)[2:4].t(), "f8": torch.zeros(4).to(torch.float8_e4m3fn), "s": torch.tensor(3)}
checkpoint = {"model": state, "epoch": 3, "optimizer": {"lr": 0.001, "state": [torch.zeros(2)]}}
torch.save(checkpoint, f"{folder}/zip.pt")
torch.save(checkpoint, f"{folder}/legacy.pt", _use_new_zipfile_serialization=False)
save_file({name: value.contiguous() for name, value in state.items()}, f"{folder}/st.safetensors", {"format": "pt"})
class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 5)
    def forward(self, x):
        return self.layer(x)
torch.jit.trace(Model(), torch.zeros(1, 3)).save(f"{folder}/script.pt")
"""
    import sys

    subprocess.run([sys.executable, "-W", "ignore", "-c", script, str(tmp_path)], check=True)
    from deepseek_ops.registry.weights import LocalRanges

    model = {"b": "F32 [7]", "f8": "F8_E4M3 [4]", "s": "I64 []", "view": "F32 [10, 2]", "w": "BF16 [300, 400]"}
    for name in ("zip.pt", "legacy.pt"):
        info = read_weights(LocalRanges(tmp_path / name))
        found = {one.name: one.described for one in info.tensors}
        assert found == {f"model.{key}": value for key, value in model.items()} | {"optimizer.state.0": "F32 [2]"}
        assert info.metadata == {"epoch": "3", "optimizer.lr": "0.001"}
        assert info.executes == ()
    info = read_weights(LocalRanges(tmp_path / "st.safetensors"))
    assert {one.name: one.described for one in info.tensors} == model
    info = read_weights(LocalRanges(tmp_path / "script.pt"))
    assert info.format == "torchscript"
    assert sorted(one.described for one in info.tensors) == ["F32 [5, 3]", "F32 [5]"]
