"""Where a pipeline's registry is, and the version that a run becomes in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from deepseek_ops.core.config import PipelineFile
from deepseek_ops.core.ports import Blobs, Facts, ObjectStore
from deepseek_ops.core.records import Checkpoint, DatasetVersion, Evaluation, ExportedModel, ModelVersion
from deepseek_ops.pipeline.runs import Base, RunPlan
from deepseek_ops.registry import REGISTRY_KIND, Registry, VersionNotFoundError


class Stores(Protocol):
    """Opens stores with one set of credentials: what a store hook, or the command line, is to us."""

    @property
    def uri(self) -> str:
        """URI of the main store."""

    @property
    def blobs(self) -> Blobs:
        """Content-addressed space of the main store."""

    def at(self, uri: str) -> ObjectStore:
        """Open another URI with the same credentials."""


def registry_of(config: PipelineFile, stores: Stores, facts: Facts) -> Registry:
    """Return the registry of ``deployment.destination``; without one, ``registry/`` of the main store."""
    uri = config.deployment.destination.path if config.deployment else f"{stores.uri.rstrip('/')}/registry/"
    return Registry(stores.at(uri), stores.blobs, facts)


def resolve_base(config: PipelineFile, stores: Stores, facts: Facts) -> Base | None:
    """Return the model that ``training.base`` names now, by digest; None when training starts from scratch.

    Raises VersionNotFoundError, and IntegrityError when the bundle is not what its digest says.
    """
    reference = config.training.base_reference
    if reference is None:
        return None
    if reference.uri:
        folder, _, version = reference.uri.rstrip("/").rpartition("/")
        bundle = Registry(stores.at(f"{folder}/"), stores.blobs, facts).read_bundle(version)
    else:
        registry, found = find_version(stores, facts, name=reference.name, version=reference.selector)
        bundle = registry.read_bundle(found.version, digest=found.bundle)
    made = bundle.model_version()
    return Base(bundle=made.bundle, model=bundle.checkpoint.model, dataset=made.manifest.dataset)


def register_run(
    registry: Registry,
    run: RunPlan,
    *,
    dataset: DatasetVersion,
    checkpoint: Checkpoint,
    evaluations: Sequence[Evaluation],
    exports: Sequence[ExportedModel],
    run_id: str,
    same: str = "",
) -> ModelVersion:
    """Return the run's version, registered now or before, and let ``challenger`` name it.

    The manifest gets the dataset version here: from now on it is the whole identity of the result. ``same`` is the
    number of the version that a run of equal content became before: this run becomes no other one.
    """
    version = _registered(registry, run.manifest.name, same) or registry.register(
        manifest=run.manifest.evolve(dataset=dataset.version),
        checkpoint=checkpoint,
        evaluations=evaluations,
        exports=exports,
        actor=f"run {run_id}",
        run=run_id,
    )
    registry.set_alias(
        version.name,
        "challenger",
        version.version,
        actor=f"run {run_id}",
        reason="passed its gates",
        operation=f"{run_id}/challenger",
    )
    return version


def _registered(registry: Registry, name: str, version: str) -> ModelVersion | None:
    """Return the version, or None when it was never there or has been removed."""
    if not version:
        return None
    try:
        return registry.resolve(name, version)
    except VersionNotFoundError:
        return None


def find_version(stores: Stores, facts: Facts, *, name: str, version: str) -> tuple[Registry, ModelVersion]:
    """Return a registered version and its registry, found by name. Raises VersionNotFoundError.

    The bundle is read back and held against its digest: what is released is what was registered.
    """
    registry = registry_named(stores, facts, name)
    found = registry.resolve(name, version)
    registry.read_bundle(found.version, digest=found.bundle)
    return registry, found


def registry_named(stores: Stores, facts: Facts, name: str) -> Registry:
    """Return the registry that a model is registered in. Raises VersionNotFoundError."""
    fact = facts.get(REGISTRY_KIND, name)
    if fact is None:
        raise VersionNotFoundError(stores.uri, f"model {name!r}")
    return Registry(stores.at(str(fact.body["uri"])), stores.blobs, facts)
