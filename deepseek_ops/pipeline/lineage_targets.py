"""What a name means: a model, a version or alias of it, a run, a tag, a commit, or a branch: its newest experiment."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from deepseek_ops.adapters.git.tracing import Mention
from deepseek_ops.core.errors import DeepSeekOpsError, PermanentError
from deepseek_ops.core.ports import Fact
from deepseek_ops.core.records import Checkpoint, ModelVersion
from deepseek_ops.pipeline.lineage_evidence import parse_evidence
from deepseek_ops.pipeline.lineage_git import recorded_subject
from deepseek_ops.pipeline.lineage_records import TrainingEvidence
from deepseek_ops.pipeline.lineage_sources import Sources
from deepseek_ops.pipeline.lineage_subject import Subject, one_of, registries_of, subject_of
from deepseek_ops.pipeline.once import RESULT
from deepseek_ops.pipeline.records_in_git import parse_release
from deepseek_ops.pipeline.releases import EXPERIMENT
from deepseek_ops.registry import VERSION_KIND, resolve

_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_MANIFEST = re.compile(r"^Manifest: ([0-9a-f]{64})\s*$", re.MULTILINE)


@dataclass(eq=False)
class UnknownTargetError(PermanentError):
    """A name that nobody knows."""

    target: str
    asked: tuple[str, ...]

    def __str__(self) -> str:
        silent = f" What stood in the way: {'; '.join(self.asked)}" if self.asked else ""
        return (
            f"{self.target!r} is no model, model@version, model@alias, run, tag, commit or branch that is known here; "
            f"check the name, --store, --registry and --repo.{silent}"
        )


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
        recorded_subject,
    )
    for reader in readers:
        if found := reader(sources, target):
            return found
    raise UnknownTargetError(target, tuple(sources.degraded))


def _by_model(sources: Sources, name: str, selector: str) -> Subject | None:
    """Return a version of a model; without a selector the champion, or the newest where there is none."""
    if not any(version.name == name for version in sources.known_versions):
        return None
    problem: DeepSeekOpsError | None = None
    for choice in (selector,) if selector else ("champion", ""):
        for store in registries_of(sources, name):
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
        return one_of(sources, trained, f"commit {trained[0].manifest.source.commit}")
    mention = sources.in_git(lambda tracer: tracer.commit(target), sources.recorded)
    return _by_mention(sources, mention, f"commit {mention.commit}") if mention else None


def _by_run(sources: Sources, target: str) -> Subject | None:
    registered = [ModelVersion.load(fact.body) for fact in sources.find(VERSION_KIND, run=target)]
    keys = {fact.key for fact in sources.find(EXPERIMENT, run=target)}
    known = {f"{version.name}/{version.version}": version for version in sources.known_versions}
    registered += [known[key] for key in sorted(keys) if key in known and known[key] not in registered]
    if registered:
        return one_of(sources, registered, f"run {target}")
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
    mention = sources.in_git(lambda tracer: tracer.tag(target), sources.recorded)
    return _by_mention(sources, mention, f"tag {target}") if mention else None


def _by_run_in_git(sources: Sources, target: str) -> Subject | None:
    found = sources.in_git(lambda tracer: tracer.mentions(f"Run-Id: {target}"), sources.recorded)
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
            return one_of(sources, named, found_by)
    return None
