"""Why a model is what it is: from a name to the chain of everything that made it and came of it.

The registry's bundle identifies, the store explains (data, evidence, files), Git locates and records, facts account.
Each link says what it could not find; sources that are away degrade the answer and are named. Nothing is guessed.
"""

from __future__ import annotations

from deepseek_ops.core.errors import DeepSeekOpsError
from deepseek_ops.core.records import RunManifest
from deepseek_ops.pipeline.lineage_became import (
    cost_link,
    exports_link,
    gates_link,
    release_link,
    rollout_link,
    training_link,
    version_link,
)
from deepseek_ops.pipeline.lineage_made_of import (
    base_link,
    code_link,
    data_link,
    environment_link,
    hyperparameters_link,
)
from deepseek_ops.pipeline.lineage_recorded import recorded_links, recorded_training
from deepseek_ops.pipeline.lineage_records import Lineage, Link
from deepseek_ops.pipeline.lineage_sources import Sources
from deepseek_ops.pipeline.lineage_subject import Subject, subject_of, version_of_bundle
from deepseek_ops.pipeline.lineage_targets import find_subject

MAX_BASES = 20
"""Models that were trained one on the other that are followed back."""


def explain(sources: Sources, target: str) -> Lineage:
    """Return the lineage of a model (``model``, ``model@version``, ``model@alias``), a run, a tag or a commit.

    Raises UnknownTargetError; VersionNotFoundError for a version that the model does not have; IntegrityError when a
    bundle was changed. What else cannot be found is in the answer.
    """
    return lineage_of(sources, find_subject(sources, target), target=target, seen=frozenset())


def lineage_of(sources: Sources, subject: Subject, *, target: str, seen: frozenset[str]) -> Lineage:
    """Return the lineage of a subject; ``seen`` holds the bundles on the way here, so a circle ends."""
    manifest, bundle = subject.manifest, subject.bundle
    links: list[Link] = []
    if bundle is not None and subject.registry is not None:
        links.append(version_link(subject.registry, bundle, subject))
    if manifest is not None:
        links += _made_of(sources, subject, manifest)
    elif subject.record is not None:
        links += recorded_links(subject)
    else:
        missing = ("no manifest: the run ended before it planned a training, or what it planned is gone",)
        links.append(Link(part="code", summary="not known", missing=missing))
    if subject.checkpoint is not None:
        links.append(training_link(sources, subject.checkpoint))
    elif subject.record is not None:
        links.append(recorded_training(subject.record))
    if bundle is not None and subject.registry is not None:
        links += [gates_link(bundle), exports_link(bundle), release_link(sources, bundle)]
        links.append(rollout_link(sources, subject.registry, bundle))
    runs = [subject.run, subject.evidence.run if subject.evidence else ""]
    links.append(cost_link(sources, runs))
    return Lineage(
        target=target,
        found_by=subject.found_by,
        model=manifest.name if manifest else subject.record.model if subject.record else "",
        version=bundle.version if bundle else subject.record.version if subject.record else "",
        run=subject.run,
        links=tuple(links),
        base=_base(sources, manifest, seen) if manifest else None,
        degraded=tuple(sources.degraded),
    )


def _made_of(sources: Sources, subject: Subject, manifest: RunManifest) -> list[Link]:
    return [
        code_link(sources, subject, manifest),
        data_link(sources, manifest),
        environment_link(sources, subject, manifest),
        base_link(sources, manifest),
        hyperparameters_link(sources, subject, manifest),
    ]


def _base(sources: Sources, manifest: RunManifest, seen: frozenset[str]) -> Lineage | None:
    digest = manifest.base
    version = version_of_bundle(sources, digest) if digest and digest not in seen and len(seen) < MAX_BASES else None
    if version is None:
        return None
    try:
        subject = subject_of(sources, version, f"the base of {manifest.name}")
    except DeepSeekOpsError as error:
        sources.say(f"base {version.name} {version.version}: {error}")
        return None
    return lineage_of(sources, subject, target=f"{version.name}@{version.version}", seen=seen | {digest})
