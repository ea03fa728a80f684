"""Results in Git: the structured experiment commit with its annotated tag, and the release tag."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Sequence

from pydantic import JsonValue

from deepseek_ops.core.errors import ObjectExistsError
from deepseek_ops.core.ports import Facts, GitRemote, NewCommit, NewTag
from deepseek_ops.core.records import (
    AuditEvent,
    Checkpoint,
    DatasetVersion,
    Evaluation,
    ModelVersion,
    Release,
    RunManifest,
    TrainingPlan,
)
from deepseek_ops.data import DatasetPointer, pointer_path, pointer_text
from deepseek_ops.pipeline.recording import push_record
from deepseek_ops.pipeline.records_in_git import (
    Comparison,
    ExperimentRecord,
    ReleaseRecord,
    experiment_message,
    experiment_tag,
    release_message,
)
from deepseek_ops.pipeline.registration import Stores, find_version, registry_named
from deepseek_ops.pipeline.runs import config_of

EXPERIMENT = "experiment"
"""Kind of the facts that say where an experiment stands in Git, keyed ``<model>/<version>``."""
RECORDING = "recording"
"""Kind of the facts that hold what a record says beyond its version, keyed ``<model>/<version>/<run>``."""
RELEASE = "release"
"""Kind of the facts that hold Release records, keyed ``<model>/<version>``."""


def record_experiment(
    git: GitRemote,
    stores: Stores,
    facts: Facts,
    *,
    dataset: DatasetVersion,
    plan: TrainingPlan,
    checkpoint: Checkpoint,
    version: ModelVersion,
    run_id: str,
    date: dt.date,
    tracker_url: str = "",
) -> dict[str, JsonValue]:
    """Push the experiment's record with its tag and return ``{tag, tag_object, commit, way, on_branch, release_run}``.

    As a commit, it stands on the commit that was trained and adds the dataset pointer and the result. It moves the
    branch forward where the branch still is there; where people have pushed meanwhile, only the tag holds it: their
    work is never rewritten. The pipeline file's ``records`` say what is done where bots may not commit. A second call
    pushes the same ids.
    """
    manifest = version.manifest
    config = config_of(stores.blobs, manifest)
    registry = registry_named(stores, facts, version.name)
    evaluations = registry.read_bundle(version.version, digest=version.bundle).evaluations
    record = ExperimentRecord(
        model=version.name,
        dataset=dataset.name,
        hyperparameters=_decided(plan),
        hardware=manifest.hardware,
        performance=version.metrics,
        comparisons=_comparisons(config.validation.metric, evaluations),
        version=version.version,
        run_id=run_id,
        date=date.isoformat(),
        branch=manifest.source.short,
        dataset_version=dataset.version,
        manifest=manifest.fingerprint,
        tracker_url=_decided_url(facts, f"{version.name}/{version.version}/{run_id}", tracker_url, run=run_id),
    )
    message = experiment_message(record)
    tag = experiment_tag(date, f"{manifest.source.short}-{manifest.fingerprint[:8]}")
    commit = NewCommit(
        branch=manifest.source.short if manifest.source.name.startswith("refs/heads/") else "",
        parent=manifest.source.commit,
        message=message,
        files=_files(stores.uri, dataset, manifest, checkpoint, version),
    )
    done = push_record(git, config.records, commit=commit, tag=tag, facts=facts)
    recorded: dict[str, JsonValue] = {
        "tag": tag,
        "tag_object": done.tag_object,
        "commit": done.commit,
        "way": done.way,
        "on_branch": done.on_branch,
        "release_run": f"release__{version.name}-{version.version}",
    }
    _keep(facts, EXPERIMENT, f"{version.name}/{version.version}", recorded, run=run_id)
    return recorded


def create_release(git: GitRemote, stores: Stores, facts: Facts, version: ModelVersion, *, approved_by: str) -> Release:
    """Push the release tag on the experiment's commit and return the release; a second call finds the same tag."""
    registry, found = find_version(stores, facts, name=version.name, version=version.version)
    rules = config_of(stores.blobs, found.manifest).release
    key = f"{found.name}/{found.version}"
    experiment = facts.get(EXPERIMENT, key)
    commit = str(experiment.body["commit"]) if experiment is not None else found.manifest.source.commit
    tag = rules.tag_name(name=found.name, version=found.version)
    message = release_message(
        ReleaseRecord(
            model=found.name,
            version=found.version,
            bundle=found.bundle,
            metrics=found.metrics,
            dataset_version=found.manifest.dataset,
            manifest=found.manifest.fingerprint,
            approved_by=approved_by,
        )
    )
    ids = git.publish(tags=[NewTag(name=tag, target=commit, message=message)])
    release = Release(
        name=found.name,
        version=found.version,
        bundle=found.bundle,
        tag=tag,
        tag_object=ids[tag],
        commit=commit,
        approved_by=approved_by,
    )
    if facts.get(RELEASE, key) is None:
        # The event goes first: a process killed in between writes it once more, and none is lost.
        event = AuditEvent(
            actor=approved_by or "policy", action="released", subject=f"model/{key}", details={"tag": tag}
        )
        facts.append_audit(event)
    _keep(facts, RELEASE, key, release.dump(), run="")
    registry.set_alias(
        found.name, "released", found.version, actor=approved_by or "policy", reason=tag, operation=f"{tag}/released"
    )
    return release


def _decided(plan: TrainingPlan) -> dict[str, JsonValue]:
    """Return the hyperparameters that decided the weights, unset ones left out."""
    values = plan.hyperparameters.model_dump(mode="json", exclude_none=True)
    return {**values, "seed": plan.seed, "zero_stage": plan.zero_stage, "world_size": plan.world_size}


def _comparisons(metric: str, evaluations: Sequence[Evaluation]) -> dict[str, Comparison]:
    """Return the judged metric beside the champion's, from the stage with the most items."""
    compared = sorted(evaluations, key=lambda one: -one.num_items)
    for one in compared:
        if one.champion and one.delta is not None and one.interval is not None:
            return {metric: Comparison(champion=one.champion, delta=one.delta, interval=one.interval)}
    return {}


def _files(
    store: str, dataset: DatasetVersion, manifest: RunManifest, checkpoint: Checkpoint, version: ModelVersion
) -> dict[str, bytes]:
    result = {
        "model": version.name,
        "version": version.version,
        "bundle": version.bundle,
        "plan": checkpoint.plan,
        "steps": checkpoint.step,
        "tokens": checkpoint.tokens,
        "metrics": version.metrics,
        "manifest": manifest.dump(),
    }
    return {
        pointer_path(dataset.name): pointer_text(DatasetPointer.of(dataset, store)).encode(),
        f"experiments/{version.version}.json": (json.dumps(result, indent=2, sort_keys=True) + "\n").encode(),
    }


def _decided_url(facts: Facts, key: str, url: str, *, run: str) -> str:
    """Return the tracker's URL as the first try had it: a tracker that answers late must not change what is pushed."""
    try:
        return str(facts.insert(RECORDING, key, {"tracker_url": url}, run=run).body["tracker_url"])
    except ObjectExistsError:
        fact = facts.get(RECORDING, key)
        return str(fact.body["tracker_url"]) if fact else url


def _keep(facts: Facts, kind: str, key: str, body: dict[str, JsonValue], *, run: str) -> None:
    fact = facts.get(kind, key)
    if fact is None:
        facts.insert(kind, key, body, run=run)
    elif fact.body != body:
        facts.update(fact, body)
