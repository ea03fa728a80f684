"""What a name turned out to be: a version, or a run, with the records that identify it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from deepseek_ops.core.errors import DeepSeekOpsError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import Checkpoint, ModelVersion, RunManifest
from deepseek_ops.pipeline.lineage_evidence import find_evidence
from deepseek_ops.pipeline.lineage_records import TrainingEvidence
from deepseek_ops.pipeline.lineage_sources import Sources
from deepseek_ops.pipeline.records_in_git import ExperimentRecord
from deepseek_ops.registry import REGISTRY_KIND, VERSION_KIND, Bundle, VersionNotFoundError, read_bundle


@dataclass(frozen=True)
class Subject:
    """What the target is, with the records that identify it."""

    found_by: str
    run: str = ""
    registry: ObjectStore | None = None
    bundle: Bundle | None = None
    manifest: RunManifest | None = None
    checkpoint: Checkpoint | None = None
    evidence: TrainingEvidence | None = None
    others: tuple[str, ...] = ()
    """Further versions that the target names as well."""
    record: ExperimentRecord | None = None
    """What Git says of it, where no bundle was found."""
    commit: str = ""
    """Of the record: the commit that was trained."""

    @property
    def name(self) -> str:
        """Return model and version, or the run."""
        if self.bundle is not None:
            return f"{self.bundle.name} {self.bundle.version}"
        if self.record is not None and self.record.version:
            return f"{self.record.model} {self.record.version}"
        return self.run

    @property
    def metrics(self) -> dict[str, float]:
        """Return what the training measured: of its checkpoint, else of its record."""
        if self.checkpoint is not None:
            return dict(self.checkpoint.metrics)
        return dict(self.record.performance) if self.record else {}


def subject_of(sources: Sources, version: ModelVersion, found_by: str, others: Iterable[str] = ()) -> Subject:
    """Return a registered version with its bundle. Raises VersionNotFoundError, IntegrityError."""
    registry, bundle = _bundle(sources, version)
    fact = sources.fact(VERSION_KIND, f"{version.name}/{version.version}")
    evidence = _evidence_of(sources, bundle)
    return Subject(
        found_by=found_by,
        run=(fact.run if fact else "") or (evidence.run if evidence else ""),
        registry=registry,
        bundle=bundle,
        manifest=bundle.manifest,
        checkpoint=bundle.checkpoint,
        evidence=evidence,
        others=tuple(others),
    )


def version_of_bundle(sources: Sources, digest: str) -> ModelVersion | None:
    """Return the version whose bundle has this digest, or None."""
    for known in (sources.known_versions, sources.stored_versions):
        if found := next((version for version in known if version.bundle == digest), None):
            return found
    return None


def _bundle(sources: Sources, version: ModelVersion) -> tuple[ObjectStore, Bundle]:
    problem: DeepSeekOpsError | None = None
    for store in registries_of(sources, version.name):
        try:
            return store, read_bundle(store, version.version, digest=version.bundle)
        except DeepSeekOpsError as error:
            problem = problem or error
    raise problem or VersionNotFoundError("(none)", f"v{version.version}")


def registries_of(sources: Sources, name: str) -> list[ObjectStore]:
    fact = sources.fact(REGISTRY_KIND, name)
    if fact is None:
        return sources.registry_stores
    first = sources.stores.at(str(fact.body["uri"]))
    return [first, *(store for store in sources.registry_stores if store.uri.rstrip("/") != first.uri.rstrip("/"))]


def _evidence_of(sources: Sources, bundle: Bundle) -> TrainingEvidence | None:
    try:
        return find_evidence(sources.datasets.store, bundle.checkpoint.plan, bundle.manifest)
    except DeepSeekOpsError as error:
        sources.say(str(error))
        return None


def one_of(sources: Sources, found: list[ModelVersion], found_by: str) -> Subject:
    """Return the newest of the versions that were found; the others are named."""
    ordered = sorted(found, key=lambda one: (one.name, tuple(map(int, one.version.split(".")))), reverse=True)
    others = [f"{one.name} {one.version}" for one in ordered[1:]]
    return subject_of(sources, ordered[0], found_by, others)
