"""The registry of one destination: its store, the blobs that versions are made from, and the facts that mirror it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from deepseek_ops.core.ports import Blobs, Facts, ObjectStore
from deepseek_ops.core.records import Checkpoint, Digest, Evaluation, ExportedModel, ModelVersion, RunManifest
from deepseek_ops.registry import aliases, mirror, publish, reading
from deepseek_ops.registry.aliases import AliasEntry, Clock, utc_now
from deepseek_ops.registry.bundle import Bundle
from deepseek_ops.registry.layout import Bump
from deepseek_ops.registry.verify import VerifyReport, verify


@dataclass(frozen=True)
class Registry:
    """Versions and aliases below ``store``. Every method may be called twice; readers need neither blobs nor facts."""

    store: ObjectStore
    """The destination, such as s3://model-registry/deepseek/."""
    blobs: Blobs
    """Where checkpoints and exports are."""
    facts: Facts
    clock: Clock = field(default=utc_now)

    def register(
        self,
        *,
        manifest: RunManifest,
        checkpoint: Checkpoint,
        exports: Sequence[ExportedModel] = (),
        evaluations: Sequence[Evaluation] = (),
        metrics: Mapping[str, float] | None = None,
        bump: Bump = "minor",
        actor: str = "deepseek-ops",
        run: str = "",
    ) -> ModelVersion:
        """Return the version of this run, registered now or before.

        The same manifest with the same model is the same version. Of registrars at the same time each gets a number of
        its own, none twice. The version is visible, whole, or not there; see ``publish``.

        Args:
            manifest: What made the model.
            checkpoint: The model; its files go to ``safetensors/`` unless an export of that format is given.
            exports: At most one per format, all of this model.
            evaluations: The gates' evidence, at most one per stage, all of this model.
            metrics: More metrics, over those of the checkpoint and of the stages.
            bump: Which part of the number grows.
            actor: Who does it, for the audit log.
            run: Owner of the fact, such as an Airflow run id.

        Raises:
            InvalidBundleError: The parts do not make one model version.
            VersionRaceError: Too many others registered at the same time.
            ObjectNotFoundError, IntegrityError: A file is not in ``blobs``, or not what its digest says.
        """
        bundle = publish.publish(
            self.store,
            self.blobs,
            manifest=manifest,
            checkpoint=checkpoint,
            exports=exports,
            evaluations=evaluations,
            metrics=metrics or {},
            bump=bump,
        )
        version = bundle.model_version()
        mirror.mirror_version(self.facts, version, registry=self.store.uri, actor=actor, run=run)
        return version

    def read_bundle(self, version: str, *, digest: Digest | None = None) -> Bundle:
        """Return a committed bundle; see ``reading.read_bundle``."""
        return reading.read_bundle(self.store, version, digest=digest)

    def versions(self, name: str | None = None) -> list[ModelVersion]:
        """Return the visible versions, newest first."""
        return reading.versions(self.store, name)

    def resolve(self, name: str, selector: str) -> ModelVersion:
        """Return the version that a number or an alias names now. Raises VersionNotFoundError."""
        return reading.resolve(self.store, name, selector)

    def fetch(self, version: str, form: str, target: Path) -> Bundle:
        """Write one format's verified files below ``target`` and return the bundle."""
        bundle = self.read_bundle(version)
        reading.fetch(self.store, bundle, form, target)
        return bundle

    def set_alias(
        self,
        name: str,
        alias: str,
        version: str,
        *,
        actor: str,
        reason: str = "",
        expected: str | None = None,
        operation: str = "",
    ) -> AliasEntry:
        """Point the alias at a committed version and return the entry that counts; see ``aliases.move``.

        Raises VersionNotFoundError, AliasMovedError.
        """
        chosen = self.resolve(name, version)
        wanted = AliasEntry(
            name=name,
            alias=alias,
            sequence=1,
            version=chosen.version,
            bundle=chosen.bundle,
            at="",
            actor=actor,
            reason=reason,
            operation=operation,
        )
        entry, _ = aliases.move(self.store, wanted, expected=expected, clock=self.clock)
        mirror.mirror_alias(self.facts, entry)
        return entry

    def alias(self, name: str, alias: str) -> AliasEntry | None:
        """Return what the alias names now, or None."""
        return aliases.head(self.store, name, alias)

    def alias_at(self, name: str, alias: str, moment: datetime) -> AliasEntry | None:
        """Return what the alias named at a moment, or None: "what served at T"."""
        return aliases.alias_at(self.store, name, alias, moment)

    def history(self, name: str, alias: str) -> list[AliasEntry]:
        """Return every move of the alias, newest first, the chain verified."""
        return list(aliases.history(self.store, name, alias))

    def verify(self, name: str | None = None, version: str | None = None) -> VerifyReport:
        """Read everything back and return what is missing or changed; see ``verify.verify``."""
        return verify(self.store, name=name, version=version, facts=self.facts)

    def rebuild(self, name: str | None = None, *, actor: str = "deepseek-ops") -> mirror.RebuildReport:
        """Restore the facts from the store."""
        return mirror.rebuild(self.store, self.facts, name=name, actor=actor)
