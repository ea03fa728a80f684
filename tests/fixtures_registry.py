"""Small models, evaluations and exports to register, and a registry in a folder."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.adapters.stores import open_store
from deepseek_ops.core.records import (
    Checkpoint,
    Evaluation,
    ExportedModel,
    ExportStatus,
    FileSet,
    GitRef,
    Parity,
    RunManifest,
    Verdict,
    digest_of,
)
from deepseek_ops.data import StoreBlobs
from deepseek_ops.registry import Registry

COMMIT = "a" * 40


def make_manifest(number: int = 0, name: str = "tiny") -> RunManifest:
    return RunManifest(
        name=name,
        source=GitRef(repository="https://git.test/tiny.git", name="refs/heads/main", commit=COMMIT),
        tree="b" * 40,
        config_digest=digest_of(b"deepseek.yaml"),
        environment="e" * 32,
        dataset="d" * 64,
        seed=number,
        hardware="2x cpu",
        software="0.1.0",
    )


def make_files(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


@dataclass
class Parts:
    """What a run hands to the registry."""

    manifest: RunManifest
    checkpoint: Checkpoint
    exports: list[ExportedModel]
    evaluations: list[Evaluation]


def make_parts(blobs: StoreBlobs, folder: Path, number: int = 0, name: str = "tiny") -> Parts:
    """Return a model of three files, an ONNX export and an evaluation with per-item results, all stored in blobs."""
    weights = f"weights {number}".encode() * 100
    model = blobs.put_folder(
        make_files(
            folder / f"model-{number}",
            {"config.json": b"{}", "model.safetensors": weights, "tokenizer/vocab.json": b'{"a": 0}'},
        )
    )
    onnx = blobs.put_folder(make_files(folder / f"onnx-{number}", {"model.onnx": b"onnx" + weights}))
    items = blobs.put_folder(make_files(folder / f"items-{number}", {"items.jsonl": b'{"loss": 1.5}\n'}))
    return Parts(
        manifest=make_manifest(number, name),
        checkpoint=Checkpoint(
            plan="c" * 64, step=100, tokens=6400, model=model, metrics={"training_loss": 2.5, "val_loss": 2.75}
        ),
        exports=[make_export(model, onnx)],
        evaluations=[
            Evaluation(
                stage="quick-check",
                model=model.fingerprint,
                dataset="tiny@dddd/small-test-set",
                metrics={"val_loss": 2.7},
                num_items=1,
                items=items.files[0],
                verdict=Verdict.PASS,
                reason="loss 2.7 is | finite\nand small",
                champion="0.1.0",
                delta=-0.1,
                interval=(-0.2, 0.0),
            )
        ],
    )


def make_export(model: FileSet, files: FileSet) -> ExportedModel:
    return ExportedModel(
        format="onnx",
        model=model.fingerprint,
        status=ExportStatus.VERIFIED,
        files=files,
        parity=Parity(runtime="onnxruntime 1.31.1", max_abs_error=1e-5, top1_agreement=1.0, num_tokens=64),
        details={"opset": 20},
    )


@dataclass
class Ticking:
    """A clock that moves one second with every look."""

    start: datetime = field(default_factory=lambda: datetime(2026, 5, 1, tzinfo=UTC))
    ticks: itertools.count[int] = field(default_factory=itertools.count)

    def __call__(self) -> datetime:
        return self.start + timedelta(seconds=next(self.ticks))


def folder_registry(folder: Path) -> Registry:
    """Return a registry below ``folder``: one store for the blobs, another for the destination, SQLite facts."""
    return Registry(
        store=open_store(f"file://{folder}/registry"),
        blobs=StoreBlobs(open_store(f"file://{folder}/main")),
        facts=open_facts(f"sqlite:///{folder}/facts.db"),
        clock=Ticking(),
    )
