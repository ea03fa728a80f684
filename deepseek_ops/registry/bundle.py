"""A model version as one self-contained record: who made it, from what, what it is, and what it has shown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Final

from pydantic import Field

from deepseek_ops.core.errors import IntegrityError, InvalidRecordError
from deepseek_ops.core.records import (
    Checkpoint,
    Digest,
    Evaluation,
    ExportedModel,
    ExportStatus,
    FileEntry,
    FileSet,
    ModelVersion,
    Name,
    Record,
    RunManifest,
    SemVer,
    canonical_json,
    digest_of,
)
from deepseek_ops.registry.errors import InvalidBundleError
from deepseek_ops.registry.layout import bundle_key
from deepseek_ops.registry.weights import WeightSummary

CARD = "README.md"
CANONICAL_FORMAT: Final = "safetensors"
_PICKLES = frozenset({".pkl", ".pickle", ".joblib", ".dill"})
_PICKLED_WEIGHTS = frozenset({".bin", ".pt", ".pth", ".ckpt"})


class Bundle(Record):
    """``bundle.json``: the commit point of a version. Every file it names lies beside it, below ``v<version>/``."""

    name: Name
    version: SemVer
    manifest: RunManifest
    checkpoint: Checkpoint
    exports: tuple[ExportedModel, ...] = Field(description="One per format; safetensors is always among them.")
    evaluations: tuple[Evaluation, ...] = Field(default=(), description="The gates' evidence.")
    metrics: dict[str, float] = Field(default_factory=dict)
    weights: WeightSummary | None = Field(
        default=None, description="What the headers of the model's weights say; None in bundles of older releases."
    )
    card: FileEntry = Field(description="The model card, README.md.")

    @property
    def identity(self) -> Digest:
        """What makes two registrations the same one."""
        return identity_of(self.manifest, self.checkpoint)

    @property
    def files(self) -> tuple[FileEntry, ...]:
        """Every file below ``v<version>/`` except bundle.json, sorted by path."""
        found = {self.card.path: self.card}
        for export in self.exports:
            found |= {f"{export.format}/{entry.path}": entry for entry in export.files.files}
        found |= {evidence_path(one): one.items for one in self.evaluations if one.items is not None}
        return tuple(entry.evolve(path=path) for path, entry in sorted(found.items()))

    @property
    def formats(self) -> tuple[str, ...]:
        return tuple(export.format for export in self.exports)

    def files_of(self, form: str) -> FileSet:
        """Return the files of one format, relative to its folder. Raises InvalidBundleError for one it has not."""
        for export in self.exports:
            if export.format == form:
                return export.files
        raise InvalidBundleError("format", form, f"version {self.version} has {', '.join(self.formats)}")

    def stored(self) -> bytes:
        """Return the bytes of bundle.json."""
        return canonical_json(self.dump())

    def model_version(self) -> ModelVersion:
        """Return the short record that other steps pass on."""
        return ModelVersion(
            name=self.name,
            version=self.version,
            bundle=digest_of(self.stored()),
            bundle_key=bundle_key(self.version),
            manifest=self.manifest,
            metrics=self.metrics,
        )


def identity_of(manifest: RunManifest, checkpoint: Checkpoint) -> Digest:
    """Return the digest of manifest and model: equal ones are the same version, however often they are registered."""
    return digest_of(canonical_json({"manifest": manifest.fingerprint, "model": checkpoint.model.fingerprint}))


def evidence_path(evaluation: Evaluation) -> str:
    """Return where the per-item results of a stage lie in the version's folder."""
    name = PurePosixPath(evaluation.items.path).name if evaluation.items else ""
    return f"evaluations/{evaluation.stage}/{name}"


def parse_bundle(data: bytes, *, where: str) -> Bundle:
    """Return the bundle. Raises IntegrityError when the bytes are not exactly what ``stored`` wrote."""
    try:
        bundle = Bundle.load(json.loads(data))
    except (ValueError, TypeError, InvalidRecordError) as error:
        raise IntegrityError(where, "that of a bundle", f"{digest_of(data)} ({error})") from error
    if bundle.stored() != data:
        raise IntegrityError(where, digest_of(bundle.stored()), digest_of(data))
    return bundle


def complete_exports(checkpoint: Checkpoint, exports: Sequence[ExportedModel]) -> tuple[ExportedModel, ...]:
    """Return the exports by format, the canonical form among them.

    Raises InvalidBundleError for an empty model, a format given twice, an export of another model, or a pickle where
    people expect plain data.
    """
    if not checkpoint.model.files:
        raise InvalidBundleError("checkpoint.model", "[]", "it has no files")
    canonical = ExportedModel(
        format=CANONICAL_FORMAT,
        model=checkpoint.model.fingerprint,
        status=ExportStatus.VERIFIED,
        reason="the checkpoint itself",
        files=checkpoint.model,
    )
    rows = {export.format: export for export in exports}
    if len(rows) != len(exports):
        raise InvalidBundleError("exports", ", ".join(one.format for one in exports), "a format is given twice")
    for export in exports:
        _require_same_model(f"exports.{export.format}.model", export.model, checkpoint)
    rows.setdefault(CANONICAL_FORMAT, canonical)
    for export in rows.values():
        _refuse_pickles(export)
    return tuple(export for _, export in sorted(rows.items()))


def checked_evaluations(checkpoint: Checkpoint, evaluations: Sequence[Evaluation]) -> tuple[Evaluation, ...]:
    """Return the evaluations. Raises InvalidBundleError for one of another model, or two of one stage."""
    stages = [one.stage for one in evaluations]
    if len(set(stages)) != len(stages):
        raise InvalidBundleError("evaluations", ", ".join(stages), "a stage is given twice")
    for one in evaluations:
        _require_same_model(f"evaluations.{one.stage}.model", one.model, checkpoint)
    return tuple(evaluations)


def all_metrics(
    checkpoint: Checkpoint, evaluations: Sequence[Evaluation], more: Mapping[str, float]
) -> dict[str, float]:
    """Return the training's metrics, each stage's as ``stage.metric``, and ``more``, which wins."""
    staged = {f"{one.stage}.{name}": value for one in evaluations for name, value in one.metrics.items()}
    return {**checkpoint.metrics, **staged, **more}


def _require_same_model(field: str, model: Digest, checkpoint: Checkpoint) -> None:
    if model != checkpoint.model.fingerprint:
        raise InvalidBundleError(field, model, f"the checkpoint's model is {checkpoint.model.fingerprint}")


def _refuse_pickles(export: ExportedModel) -> None:
    """A pickle runs code when it is loaded. TorchScript archives are loaded by their own runtime, which does not."""
    refused = _PICKLES | (_PICKLED_WEIGHTS if export.format == CANONICAL_FORMAT else frozenset())
    for entry in export.files.files:
        if PurePosixPath(entry.path).suffix.lower() in refused:
            raise InvalidBundleError(f"exports.{export.format}", entry.path, "pickles stay out; store safetensors")
