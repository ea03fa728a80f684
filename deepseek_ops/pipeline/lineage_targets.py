"""What a name means: a model, a version or alias of it, a run, a tag, or a commit."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from deepseek_ops.adapters.git.tracing import Mention
from deepseek_ops.core.errors import DeepSeekOpsError, PermanentError
from deepseek_ops.core.ports import Fact, ObjectStore
from deepseek_ops.core.records import Checkpoint, ModelVersion, RunManifest
from deepseek_ops.pipeline.lineage_evidence import find_evidence, parse_evidence
from deepseek_ops.pipeline.lineage_records import TrainingEvidence
from deepseek_ops.pipeline.lineage_sources import Sources
from deepseek_ops.pipeline.once import RESULT
from deepseek_ops.pipeline.records_in_git import parse_release
from deepseek_ops.pipeline.releases import EXPERIMENT
from deepseek_ops.registry import REGISTRY_KIND, VERSION_KIND, Bundle, VersionNotFoundError, read_bundle, resolve

_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_MANIFEST = re.compile(r"^Manifest: ([0-9a-f]{64})\s*$", re.MULTILINE)


@dataclass(eq=False)
class UnknownTargetError(PermanentError):
    """A name that nobody knows."""

    target: str
    asked: tuple[str, ...]

    def __str__(self) -> str:
        silent = f" Not everybody answered: {'; '.join(self.asked)}" if self.asked else ""
        return (
            f"{self.target!r} is no model, model@version, model@alias, run, tag or commit that is known here; "
            f"check the name, --store, --registry and --repo.{silent}"
        )


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


def find_subject(sources: Sources, target: str) -> Subject:
    """Return what the target names. Raises UnknownTargetError, VersionNotFoundError, IntegrityError."""
    name, at, selector = target.partition("@")
    if at and selector and (found := _by_model(sources, name, selector)):
        return found
    readers: tuple[Callable[[Sources, str], Subject | None], ...] = (
        _by_commit,
        lambda sources, name: _by_model(sources, name, ""),
        _by_run,
        _by_tag,
        _by_run_in_git,
    )
    for reader in readers:
        if found := reader(sources, target):
            return found
    raise UnknownTargetError(target, tuple(sources.degraded))


def subject_of(sources: Sources, version: ModelVersion, found_by: str, others: Iterable[str] = ()) -> Subject:
    """Return a registered version with its bundle. Raises VersionNotFoundError, IntegrityError."""
    registry, bundle = _bundle(sources, version)
    fact = sources.fact(VERSION_KIND, f"{version.name}/{version.version}")
    evidence = _evidence(sources, bundle)
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
    for store in _registries_of(sources, version.name):
        try:
            return store, read_bundle(store, version.version, digest=version.bundle)
        except DeepSeekOpsError as error:
            problem = problem or error
    raise problem or VersionNotFoundError("(none)", f"v{version.version}")


def _registries_of(sources: Sources, name: str) -> list[ObjectStore]:
    fact = sources.fact(REGISTRY_KIND, name)
    if fact is None:
        return sources.registry_stores
    first = sources.stores.at(str(fact.body["uri"]))
    return [first, *(store for store in sources.registry_stores if store.uri.rstrip("/") != first.uri.rstrip("/"))]


def _evidence(sources: Sources, bundle: Bundle) -> TrainingEvidence | None:
    try:
        return find_evidence(sources.datasets.store, bundle.checkpoint.plan, bundle.manifest)
    except DeepSeekOpsError as error:
        sources.say(str(error))
        return None


def _by_model(sources: Sources, name: str, selector: str) -> Subject | None:
    """Return a version of a model; without a selector the champion, or the newest where there is none."""
    if not any(version.name == name for version in sources.known_versions):
        return None
    problem: DeepSeekOpsError | None = None
    for choice in (selector,) if selector else ("champion", ""):
        for store in _registries_of(sources, name):
            try:
                version = resolve(store, name, choice) if choice else _newest(sources, name)
            except DeepSeekOpsError as error:
                problem = problem or error
                continue
            return subject_of(sources, version, f"model {name}, {choice or 'its newest version'}")
    if problem is not None:
        raise problem
    return None


def _newest(sources: Sources, name: str) -> ModelVersion:
    found = [version for version in sources.known_versions if version.name == name]
    return max(found, key=lambda version: tuple(map(int, version.version.split("."))))


def _by_commit(sources: Sources, target: str) -> Subject | None:
    if not _COMMIT.fullmatch(target):
        return None
    trained = [version for version in sources.known_versions if version.manifest.source.commit.startswith(target)]
    if trained:
        return _one_of(sources, trained, f"commit {trained[0].manifest.source.commit}")
    mention = sources.in_git(lambda tracer: tracer.commit(target), _repositories(sources))
    return _by_mention(sources, mention, f"commit {mention.commit}") if mention else None


def _by_run(sources: Sources, target: str) -> Subject | None:
    registered = [ModelVersion.load(fact.body) for fact in sources.find(VERSION_KIND, run=target)]
    keys = {fact.key for fact in sources.find(EXPERIMENT, run=target)}
    known = {f"{version.name}/{version.version}": version for version in sources.known_versions}
    registered += [known[key] for key in sorted(keys) if key in known and known[key] not in registered]
    if registered:
        return _one_of(sources, registered, f"run {target}")
    results = sources.find(RESULT, run=target)
    return _unregistered(sources, target, results) if results else None


def _unregistered(sources: Sources, run: str, results: list[Fact]) -> Subject:
    """Return what a run without a version left behind: its last training, and what that was planned from."""
    trained = [Checkpoint.load(fact.body) for fact in results if fact.key.startswith("train-")]
    for checkpoint in trained:
        for evidence in _evidence_below(sources, checkpoint.plan):
            if evidence.run == run and evidence.plan.purpose == "train":
                return Subject(
                    found_by=f"run {run}, which registered no version",
                    run=run,
                    manifest=evidence.manifest,
                    checkpoint=checkpoint,
                    evidence=evidence,
                )
    return Subject(found_by=f"run {run}, which registered no version", run=run)


def _evidence_below(sources: Sources, plan: str) -> Iterator[TrainingEvidence]:
    store = sources.datasets.store
    for info in store.list(f"runs/{plan}/lineage/"):
        try:
            yield parse_evidence(store.get(info.key))
        except DeepSeekOpsError as error:
            sources.say(str(error))


def _by_tag(sources: Sources, target: str) -> Subject | None:
    mention = sources.in_git(lambda tracer: tracer.tag(target), _repositories(sources))
    return _by_mention(sources, mention, f"tag {target}") if mention else None


def _by_run_in_git(sources: Sources, target: str) -> Subject | None:
    found = sources.in_git(lambda tracer: tracer.mentions(f"Run-Id: {target}"), _repositories(sources))
    for mention in found or ():
        if subject := _by_mention(sources, mention, f"run {target}, named by {mention.by} {mention.name[:40]}"):
            return subject
    return None


def _by_mention(sources: Sources, mention: Mention, found_by: str) -> Subject | None:
    """Return the version that a text of ours speaks of."""
    manifests = set(_MANIFEST.findall(mention.text))
    release = parse_release(mention.text)
    bundle = release.bundle if release else ""
    for known in (sources.known_versions, sources.stored_versions):
        named = [one for one in known if one.bundle == bundle or one.manifest.fingerprint in manifests]
        named = named or [one for one in known if one.manifest.source.commit == mention.commit]
        if named:
            return _one_of(sources, named, found_by)
    return None


def _one_of(sources: Sources, found: list[ModelVersion], found_by: str) -> Subject:
    """Return the newest of the versions that were found; the others are named."""
    ordered = sorted(found, key=lambda one: (one.name, tuple(map(int, one.version.split(".")))), reverse=True)
    others = [f"{one.name} {one.version}" for one in ordered[1:]]
    return subject_of(sources, ordered[0], found_by, others)


def _repositories(sources: Sources) -> list[str]:
    return list(dict.fromkeys(version.manifest.source.repository for version in sources.known_versions))
