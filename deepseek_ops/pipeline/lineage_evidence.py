"""What a training was planned from, kept in the store when it is planned.

A bundle tells what a model is; this tells what it was made from, down to the files of the commit. It lies below the
run's own prefix, is written once, and names the code's files, so they stay for as long as it does: a result whose
commit is gone from every repository can still be read and written out again.
"""

from __future__ import annotations

import json

from deepseek_ops.core.errors import InvalidRecordError, ObjectExistsError, ObjectNotFoundError
from deepseek_ops.core.ports import Blobs, ObjectStore
from deepseek_ops.core.records import DatasetVersion, FileSet, RunManifest, TrainingPlan, Trial, canonical_json
from deepseek_ops.pipeline.lineage_records import TrainingEvidence
from deepseek_ops.pipeline.runs import RunPlan

_FOLDER = "lineage"


def keep_evidence(
    store: ObjectStore,
    run: RunPlan,
    plan: TrainingPlan,
    *,
    dataset: DatasetVersion,
    run_id: str,
    winner: Trial | None = None,
    trials: int = 0,
) -> TrainingEvidence:
    """Store what the plan was made from and return what counts: the first record of equal manifest and plan stays."""
    evidence = TrainingEvidence(
        run=run_id,
        manifest=run.manifest.evolve(dataset=dataset.version),
        code=run.code,
        lock=run.lock,
        machine=run.machine,
        plan=plan,
        study=winner.study if winner else "",
        trial=winner.number if winner else None,
        objective=winner.objective if winner else None,
        trials=trials,
    )
    key = _key(plan.fingerprint, evidence.manifest)
    try:
        store.create(key, canonical_json(evidence.dump()))
    except ObjectExistsError:
        return find_evidence(store, plan.fingerprint, evidence.manifest) or evidence
    return evidence


def find_evidence(store: ObjectStore, plan: str, manifest: RunManifest) -> TrainingEvidence | None:
    """Return what a training was planned from, or None for one that is older than these records.

    Raises InvalidRecordError for a record that was damaged.
    """
    try:
        data = store.get(_key(plan, manifest))
    except ObjectNotFoundError:
        return None
    return parse_evidence(data)


def parse_evidence(data: bytes) -> TrainingEvidence:
    """Return the record. Raises InvalidRecordError."""
    try:
        return TrainingEvidence.load(json.loads(data))
    except ValueError as error:
        raise InvalidRecordError("TrainingEvidence", f"it is not JSON: {error}") from error


def evidence_place(store: ObjectStore, plan: str, manifest: RunManifest) -> str:
    """Return the URI of the record."""
    return f"{store.uri.rstrip('/')}/{_key(plan, manifest)}"


def code_files(blobs: Blobs, evidence: TrainingEvidence) -> FileSet:
    """Return the files of the commit. Raises ObjectNotFoundError, IntegrityError."""
    return FileSet.load(json.loads(blobs.get(evidence.code)))


def _key(plan: str, manifest: RunManifest) -> str:
    return f"runs/{plan}/{_FOLDER}/{manifest.fingerprint}.json"
