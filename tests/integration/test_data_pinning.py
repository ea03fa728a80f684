"""One commit, one data version: what a run of a commit with a dataset pointer gets, and when it refuses."""

from __future__ import annotations

import json

import pytest

from deepseek_ops.adapters.stores import open_store
from deepseek_ops.core.config import load_pipeline
from deepseek_ops.core.errors import ConfigError
from deepseek_ops.core.records import GitRef, RunManifest
from deepseek_ops.data import (
    DatasetPointer,
    DatasetRepository,
    StoreBlobs,
    VersionNotFoundError,
    pointer_path,
    pointer_text,
)
from deepseek_ops.data.guard import DatasetMismatchError
from deepseek_ops.pipeline.pinning import PointerMissingError, held_to, is_used_as_it_is, pinned
from deepseek_ops.pipeline.runs import RunPlan

COMMIT = "a" * 40


class Workshop:
    """A store with datasets, and a model repository's files."""

    def __init__(self, root):
        self.root = root
        self.store = open_store(str(root / "store"))
        self.datasets = DatasetRepository.open(self.store)
        self.blobs = StoreBlobs(self.store)
        self.code = root / "code"
        self.code.mkdir()
        (self.code / "prepare.py").write_text("pass\n")

    def version(self, name, text, lineage=None):
        folder = self.root / "data"
        folder.mkdir(exist_ok=True)
        (folder / "a.txt").write_text(text)
        return self.datasets.commit(folder, name=name, message="m", author="a", lineage=lineage or {})

    def made_from(self, raw, code="1", text="prepared"):
        made_by = {"callable": "p:f", "code": code, "parameters": {}, "split": {"train": 1.0}}
        return self.version("corpus", text, {**made_by, "raw": {"dataset": raw.name, "version": raw.version}})

    def point(self, version):
        path = self.code / pointer_path("corpus")
        path.parent.mkdir(exist_ok=True)
        path.write_text(pointer_text(DatasetPointer.of(version, self.store.uri)))

    def run(self):
        code = self.blobs.put(json.dumps(self.blobs.put_folder(self.code).dump()).encode())
        source = GitRef(repository="r", name="refs/heads/main", commit=COMMIT)
        manifest = RunManifest(
            name="m", source=source, tree="b" * 40, config_digest="c" * 64, environment="e", software="1"
        )
        return RunPlan(manifest=manifest, code=code)

    def pinned(self, config, *, newest=False):
        return pinned(config, self.run(), self.blobs, self.datasets, newest=newest)

    def held(self, config, pin, made):
        return held_to(config, self.run(), pin, made, self.datasets)


def pipeline(**data):
    return load_pipeline(json.dumps({"data": {"raw": "s3://lake/raw/", "dataset": "corpus", **data}}), file="f")


@pytest.fixture
def workshop(tmp_path):
    return Workshop(tmp_path)


def test_a_pointer_pins_the_raw_data_that_its_version_was_made_from(workshop):
    raw = workshop.version("corpus-raw", "old")
    named = workshop.made_from(raw)
    workshop.version("corpus-raw", "arrived since")
    workshop.point(named)
    pin = workshop.pinned(pipeline())
    assert (pin.version, pin.raw) == (named, raw)
    assert not is_used_as_it_is(pipeline(), pin)


@pytest.mark.parametrize(("pin", "newest", "bound"), [("commit", True, False), ("newest", False, False)])
def test_runs_that_ask_for_new_data_are_not_bound(workshop, pin, newest, bound):
    workshop.point(workshop.made_from(workshop.version("corpus-raw", "old")))
    assert (workshop.pinned(pipeline(pin=pin), newest=newest) is not None) is bound


def test_require_binds_also_the_runs_that_new_data_starts(workshop):
    named = workshop.made_from(workshop.version("corpus-raw", "old"))
    workshop.point(named)
    assert workshop.pinned(pipeline(pin="require"), newest=True).version == named


def test_equal_files_are_the_version_that_the_commit_names_also_when_prepared_again(workshop):
    raw = workshop.version("corpus-raw", "old")
    named = workshop.made_from(raw)
    workshop.made_from(raw, code="2", text="other")
    again = workshop.made_from(raw)
    assert again.version != named.version
    workshop.point(named)
    assert workshop.held(pipeline(), workshop.pinned(pipeline()), again) == (named, "")


def test_other_bytes_from_the_same_preparation_are_refused_with_both_ids_and_the_command(workshop):
    raw = workshop.version("corpus-raw", "old")
    named = workshop.made_from(raw)
    workshop.point(named)
    other = workshop.made_from(raw, text="chance")
    with pytest.raises(DatasetMismatchError) as caught:
        workshop.held(pipeline(), workshop.pinned(pipeline()), other)
    text = str(caught.value)
    assert named.version in text
    assert other.version in text
    assert f"git log -p -1 {COMMIT} -- data/corpus.dataset.yaml" in text


def test_a_commit_that_prepares_differently_gets_what_it_makes_unless_it_requires_the_pointer(workshop):
    raw = workshop.version("corpus-raw", "old")
    named = workshop.made_from(raw)
    workshop.point(named)
    made = workshop.made_from(raw, code="2", text="better")
    version, line = workshop.held(pipeline(), workshop.pinned(pipeline()), made)
    assert version == made
    assert "code of its preparation moved" in line
    strict = pipeline(pin="require")
    with pytest.raises(DatasetMismatchError, match=named.version):
        workshop.held(strict, workshop.pinned(strict), made)


def test_an_imported_version_is_used_as_it_is_where_nothing_says_how_to_prepare(workshop):
    workshop.point(workshop.version("corpus", "by hand"))
    config = load_pipeline(json.dumps({"data": {"dataset": "corpus"}}), file="f")
    assert is_used_as_it_is(config, workshop.pinned(config))
    assert not is_used_as_it_is(pipeline(), workshop.pinned(pipeline()))


def test_a_commit_without_a_pointer_is_free_unless_one_is_required(workshop):
    assert workshop.pinned(pipeline()) is None
    with pytest.raises(PointerMissingError, match=r"aaaaaaaaaaaa has no data/corpus\.dataset\.yaml"):
        workshop.pinned(pipeline(pin="require"))


def test_a_pointer_to_nothing_and_one_with_merge_markers_are_one_clear_error(workshop):
    named = workshop.made_from(workshop.version("corpus-raw", "old"))
    workshop.point(named)
    path = workshop.code / pointer_path("corpus")
    good = path.read_text()
    path.write_text(good.replace(named.version, "f" * 64))
    with pytest.raises(VersionNotFoundError, match="f" * 64):
        workshop.pinned(pipeline())
    path.write_text(f"<<<<<<< ours\n{good}=======\n{good}>>>>>>> theirs\n")
    with pytest.raises(ConfigError, match=r"data/corpus\.dataset\.yaml"):
        workshop.pinned(pipeline())
