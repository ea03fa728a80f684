"""From a pushed tag to the registered version it names.

A tag names the version whose experiment commit, or trained commit, it is on; the facts know it, and where they were
lost, the registry's bundles and the commit's own trailers do.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import JsonValue

from deepseek_ops.core.config import GitTagTrigger, PipelineFile, load_pipeline
from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.ports import Facts, GitRemote
from deepseek_ops.core.records import GitRef, ModelVersion
from deepseek_ops.pipeline.changes import PIPELINE_FILE
from deepseek_ops.pipeline.pushes import label_of
from deepseek_ops.pipeline.records_in_git import parse_experiment
from deepseek_ops.pipeline.registration import Stores, registry_of
from deepseek_ops.pipeline.releases import EXPERIMENT, RELEASE
from deepseek_ops.pipeline.runs import config_of
from deepseek_ops.registry import VERSION_KIND

_ALL = 1_000_000


@dataclass(eq=False)
class UnregisteredTagError(PermanentError):
    """A tag that should release something names no registered version."""

    tag: str
    commit: str
    model: str

    def __str__(self) -> str:
        return (
            f"tag {self.tag} on commit {self.commit[:12]} names no registered version of {self.model}: tag the commit "
            f"of an experiment (`deepseek-ops log` lists them), or train the tag with a git-tag trigger that says "
            f"run: retrain."
        )


@dataclass(frozen=True, slots=True)
class TagStart:
    """What a tag starts."""

    dag: str
    run_id: str
    conf: dict[str, str]


def experiment_of(facts: Facts, name: str, version: str) -> dict[str, JsonValue] | None:
    """Return where a version's experiment stands in Git, as it was recorded; None before that."""
    fact = facts.get(EXPERIMENT, f"{name}/{version}")
    return None if fact is None else dict(fact.body)


def release_target(stores: Stores, facts: Facts, version: ModelVersion) -> tuple[str, str]:
    """Return the tag that releases a version, and the commit it goes to."""
    rules = config_of(stores.blobs, version.manifest).release
    experiment = facts.get(EXPERIMENT, f"{version.name}/{version.version}")
    commit = str(experiment.body["commit"]) if experiment is not None else version.manifest.source.commit
    return rules.tag_name(name=version.name, version=version.version), commit


def start_of(git: GitRemote, stores: Stores, facts: Facts, ref: GitRef, *, repository: str) -> TagStart | None:
    """Return what the tag starts, as its own commit's pipeline file says; None when it asks for nothing.

    ``repository`` is the connection that the run is to read. Raises UnregisteredTagError, RefNotFoundError, and the
    pipeline file's own errors.
    """
    config = load_pipeline(git.read_file(ref.commit, PIPELINE_FILE), file=f"{PIPELINE_FILE}@{ref.commit[:12]}")
    wanted = (one for one in config.triggers if isinstance(one, GitTagTrigger) and one.wants(ref.short))
    trigger = next(wanted, None)
    if trigger is None:
        return None
    if trigger.run == "retrain":
        conf = {"repository": repository, "ref": f"{ref.name}@{ref.commit}", "cause": "tag"}
        return TagStart("retrain", f"tag__{label_of(ref)}", conf)
    name, version = version_of(git, stores, facts, config, ref)
    conf = {"repository": repository, "model": name, "version": version}
    # The id that a training run gives to its release: of the two, whichever comes second changes nothing.
    return TagStart("release", f"release__{name}-{version}", conf)


def version_of(git: GitRemote, stores: Stores, facts: Facts, config: PipelineFile, ref: GitRef) -> tuple[str, str]:
    """Return name and version of what the tag's commit made. Raises UnregisteredTagError."""
    for kind in (EXPERIMENT, RELEASE):
        for fact in facts.find(kind, prefix=f"{config.name}/", limit=_ALL):
            if fact.body.get("commit") == ref.commit:
                name, _, version = fact.key.rpartition("/")
                return name, version
    known = [ModelVersion.load(fact.body) for fact in facts.find(VERSION_KIND, prefix=f"{config.name}/", limit=_ALL)]
    found = _trained_on(ref, known) or _of_trailers(git, ref, known)
    if found is None:
        stored = registry_of(config, stores, facts).versions(config.name)
        found = _trained_on(ref, stored) or _of_trailers(git, ref, stored)
    if found is None:
        raise UnregisteredTagError(ref.short, ref.commit, config.name)
    return found.name, found.version


def _trained_on(ref: GitRef, versions: list[ModelVersion]) -> ModelVersion | None:
    return next((one for one in versions if one.manifest.source.commit == ref.commit), None)


def _of_trailers(git: GitRemote, ref: GitRef, versions: list[ModelVersion]) -> ModelVersion | None:
    if not versions:
        return None
    for text in git.record_texts((ref.name,)):
        record = parse_experiment(text.text) if text.commit == ref.commit else None
        if record is not None:
            found = next((one for one in versions if one.manifest.fingerprint == record.manifest), None)
            if found is not None:
                return found
    return None
