"""Whole results to ask about: real repositories, datasets, evidence, bundles and facts, without a training."""

from __future__ import annotations

import datetime as dt
import json
import math
import random
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from fixtures_git import Developer, make_developer, run_git
from pydantic import JsonValue

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.adapters.git import open_git
from deepseek_ops.adapters.git.tracing import open_tracer
from deepseek_ops.adapters.stores import open_store
from deepseek_ops.core.ports import Facts, ObjectStore
from deepseek_ops.core.records import (
    Checkpoint,
    CostEntry,
    DatasetVersion,
    Evaluation,
    FileSet,
    GitRef,
    Hyperparameters,
    ModelVersion,
    RunManifest,
    TrainingPlan,
    Trial,
    Verdict,
)
from deepseek_ops.cost.entries import COST
from deepseek_ops.data import DatasetRepository, StoreBlobs
from deepseek_ops.pipeline.evaluations import ITEM_VALUES
from deepseek_ops.pipeline.lineage_evidence import keep_evidence
from deepseek_ops.pipeline.lineage_sources import Sources
from deepseek_ops.pipeline.releases import record_experiment
from deepseek_ops.pipeline.runs import RunPlan
from deepseek_ops.registry import Registry

PIPELINE = """\
name: tiny
triggers:
  - {{type: git-push, branches: [main, "exp/*"]}}
data: {{raw: raw/, prepare: "deepseek.prepare:prepare_data", dataset: corpus}}
training:
  model: deepseek/model.json
  method: pretrain
  hyperparameters:
    - {{name: learning_rate, value: {learning_rate}}}
    - {{name: batch_size, value: 8}}
validation:
  stages:
    - {{name: quick-check, dataset: small-test-set, timeout: 30m}}
deployment:
  formats: [safetensors]
  destination: {{type: local, path: "{registry}"}}
  strategy: canary
  steps: [50, 100]
  endpoint: tiny
"""


@dataclass(frozen=True)
class FolderStores:
    """Stores below one folder."""

    folder: Path

    @property
    def uri(self) -> str:
        return f"file://{self.folder}/main"

    @property
    def blobs(self) -> StoreBlobs:
        return StoreBlobs(open_store(self.uri))

    def at(self, uri: str) -> ObjectStore:
        return open_store(uri)


@dataclass
class World:
    """One model repository, one store, one registry and the facts, with whatever was run in them."""

    folder: Path
    developer: Developer
    stores: FolderStores
    facts: Facts
    runs: dict[str, ModelVersion] = field(default_factory=dict)

    @property
    def registry_uri(self) -> str:
        return f"file://{self.folder}/registry"

    @property
    def registry(self) -> Registry:
        return Registry(self.stores.at(self.registry_uri), self.stores.blobs, self.facts)

    def sources(self, *, facts: bool = True, repositories: tuple[str, ...] = (), git: bool = True) -> Sources:
        cache = self.folder / "trace-cache"
        return Sources(
            stores=self.stores,
            facts=self.facts if facts else None,
            registries=() if facts else (self.registry_uri,),
            repositories=repositories,
            open_tracer=(lambda url: open_tracer(url, cache=cache)) if git else None,
        )

    def push(self, *, branch: str = "main", learning_rate: float = 0.001, code: str = "x = 1\n") -> str:
        files = {
            "deepseek.yaml": PIPELINE.format(learning_rate=learning_rate, registry=self.registry_uri),
            "deepseek/prepare.py": code,
            "requirements.txt": "numpy==2.0.0\n",
        }
        return self.developer.push_commit(files, branch=branch, message=f"Try {learning_rate}")

    def dataset(
        self, lines: list[str], *, test: list[str] | None = None, raw: JsonValue = "", code: str = "c0de" * 16
    ) -> DatasetVersion:
        folder = self.folder / "data"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "documents").mkdir(parents=True)
        rows = "".join(json.dumps({"id": number, "text": line}) + "\n" for number, line in enumerate(lines))
        (folder / "documents" / "train.jsonl").write_text(rows)
        if test is not None:
            held = "".join(json.dumps({"id": f"i{number}", "text": line}) + "\n" for number, line in enumerate(test))
            (folder / "documents" / "test.jsonl").write_text(held)
        lineage = {"callable": "deepseek.prepare:prepare_data", "code": code, "gate": {"verdict": "pass"}}
        lineage |= {"raw": raw} if raw else {}
        return DatasetRepository.open(self.stores.at(self.stores.uri)).commit(
            folder,
            name="corpus",
            message="Prepare corpus",
            author="prepare",
            lineage=lineage,
            splits={"train": len(lines)},
        )

    def run(
        self,
        run_id: str,
        commit: str,
        dataset: DatasetVersion,
        *,
        branch: str = "main",
        seed: int = 0,
        base: str = "",
        loss: float = 2.0,
        learning_rate: float = 0.001,
        record: bool = True,
        hardware: str = "1x2 ranks, engine local",
        selection: str = "corpus@small-test-set",
        metric: str = "val_loss",
    ) -> ModelVersion:
        """Do what a run leaves behind: evidence, a model, its evaluation, the version, the experiment, its cost."""
        blobs, git = self.stores.blobs, self.developer.remote
        about = git.describe(commit)
        code = self.folder / "code" / commit
        git.checkout(commit, code)
        manifest = RunManifest(
            name="tiny",
            source=GitRef(repository=git.url, name=f"refs/heads/{branch}", commit=commit),
            tree=about["tree"],
            patch_id=about["patch_id"],
            config_digest=blobs.put((code / "deepseek.yaml").read_bytes()),
            environment="e" * 64,
            base=base,
            seed=seed,
            hardware=hardware,
            software="0.1.0",
        )
        run = RunPlan(
            manifest=manifest,
            code=blobs.put(json.dumps(blobs.put_folder(code).dump()).encode()),
            lock="requirements.txt",
        )
        plan = TrainingPlan(
            dataset=dataset,
            model={"model_type": "deepseek_v3"},
            hyperparameters=Hyperparameters(learning_rate=learning_rate, batch_size=8, max_steps=4),
            environment=manifest.environment,
            seed=seed,
        )
        winner = Trial(study="tiny-123", number=2, values={}, state="complete", objective=loss)
        store = self.stores.at(self.stores.uri)
        keep_evidence(store, run, plan, dataset=dataset, run_id=run_id, winner=winner, trials=4)
        model = _model(blobs, self.folder / "model" / run_id, run_id)
        version = self.registry.register(
            manifest=manifest.evolve(dataset=dataset.version),
            checkpoint=Checkpoint(
                plan=plan.fingerprint,
                step=4,
                tokens=512,
                model=model,
                metrics={"val_loss": loss, "training_loss": loss},
            ),
            evaluations=[_evaluation(blobs, self.folder / "items" / run_id, model, loss, selection, metric)],
            actor=f"run {run_id}",
            run=run_id,
        )
        entry = CostEntry(run=run_id, job="train-1", label="productive", device="cpu", device_seconds=60, usd=0.25)
        self.facts.insert(COST, f"train-{run_id}/1/productive", entry.dump(), run=run_id)
        if record:
            record_experiment(
                git,
                self.stores,
                self.facts,
                dataset=dataset,
                plan=plan,
                checkpoint=self.registry.read_bundle(version.version).checkpoint,
                version=version,
                run_id=run_id,
                date=dt.date(2026, 5, 1),
            )
        self.runs[run_id] = version
        return version


def _model(blobs: StoreBlobs, folder: Path, salt: str) -> FileSet:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(_safetensors(salt))
    return blobs.put_folder(folder)


def _safetensors(salt: str) -> bytes:
    data = salt.encode().ljust(64, b"\0")
    header = json.dumps({"weight": {"dtype": "F32", "shape": [16], "data_offsets": [0, 64]}}).encode()
    return len(header).to_bytes(8, "little") + header + data


def _evaluation(
    blobs: StoreBlobs, folder: Path, model: FileSet, loss: float, selection: str, metric: str
) -> Evaluation:
    """Return 60 items around ``loss``; the same item is easy or hard for every model, as in life."""
    folder.mkdir(parents=True)
    dice = random.Random(7)  # noqa: S311
    noise = random.Random(loss)  # noqa: S311
    field = ITEM_VALUES.get(metric, metric)
    items = [{"id": f"i{n}", field: loss + dice.gauss(0, 0.5) + noise.gauss(0, 0.02)} for n in range(60)]
    (folder / "items.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    mean = math.fsum(float(item[field]) for item in items) / len(items)
    return Evaluation(
        stage="quick-check",
        model=model.fingerprint,
        dataset=selection,
        metrics={metric: mean},
        num_items=len(items),
        items=blobs.put_folder(folder).files[0],
        verdict=Verdict.PASS,
        reason="below what guessing costs",
    )


@pytest.fixture
def world(tmp_path: Path) -> World:
    """A world of its own for a test that changes it."""
    return make_world(tmp_path)


def make_world(tmp_path: Path) -> World:
    bare = tmp_path / "model.git"
    run_git(tmp_path, "init", "--quiet", "--bare", "--initial-branch=main", str(bare))
    run_git(bare, "config", "uploadpack.allowFilter", "true")
    developer = make_developer(tmp_path / "work", bare, open_git(f"file://{bare}", cache=tmp_path / "cache"))
    return World(tmp_path, developer, FolderStores(tmp_path), open_facts(f"sqlite:///{tmp_path}/facts.db"))
