"""Results that Git alone still knows: by a tag, a run, a commit or a branch, from the records in its texts.

A record names its manifest by fingerprint, and the result file of its commit holds the whole of it; that leads back to
the pipeline file, from there to the registry, and to what the store keeps of the training. What none of them has is
told from the record itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import islice

from deepseek_ops.adapters.git.tracing import GitTracer
from deepseek_ops.core.errors import DeepSeekOpsError, RefNotFoundError
from deepseek_ops.core.records import RunManifest
from deepseek_ops.pipeline.experiments import Experiment, experiments_of
from deepseek_ops.pipeline.lineage_evidence import find_evidence, parse_evidence
from deepseek_ops.pipeline.lineage_made_of import read_config
from deepseek_ops.pipeline.lineage_records import TrainingEvidence
from deepseek_ops.pipeline.lineage_sources import Sources
from deepseek_ops.pipeline.lineage_subject import Subject, one_of
from deepseek_ops.pipeline.promotion_choice import commit_in
from deepseek_ops.registry import versions

MAX_RESULT_BYTES = 1 << 20
MAX_KEYS = 200_000
"""Keys of the store that are listed for a record which does not say where its training is."""
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_HEADS = "refs/heads/"


def recorded_subject(sources: Sources, target: str) -> Subject | None:
    """Return the result that a record in Git names as ``target``; of a branch its newest experiment. None: no record.

    A repository that does not answer is noted and passed over. Raises IntegrityError, VersionNotFoundError when the
    record leads to a version that was changed.
    """
    for tracer in sources.tracers(sources.recorded):
        try:
            found = _named(sources, tracer, target)
            filed = _filed(tracer, found[0]) if found else None
        except DeepSeekOpsError as error:
            sources.say(str(error))
            continue
        if found is not None:
            return _subject(sources, found[0], found[1], filed)
    return None


def _named(sources: Sources, tracer: GitTracer, target: str) -> tuple[Experiment, str] | None:
    """Return the experiment, and what the target is in words."""
    known = experiments_of(tracer.repository.record_texts())
    for one in known:
        if target in (*one.tags, *one.releases):
            return one, f"tag {target}"
        if target == one.record.run_id:
            return one, f"run {target}"
        if _COMMIT.fullmatch(target) and any(
            commit.startswith(target) for commit in (one.commit, *one.copies, *one.parents)
        ):
            return one, f"commit {target}"
    return _newest_of(sources, tracer, target.removeprefix(_HEADS), known)


def _newest_of(
    sources: Sources, tracer: GitTracer, branch: str, known: Sequence[Experiment]
) -> tuple[Experiment, str] | None:
    tip = tracer.repository.refs([f"{_HEADS}*"]).get(f"{_HEADS}{branch}")
    if tip is None:
        return None
    reached = set(tracer.repository.reachable([tip]))
    found = next((one for one in known if commit_in(one, reached)), None)
    if found is None:
        sources.say(f"branch {branch} of {tracer.url} has no recorded experiment")
        return None
    name = ", ".join(found.tags) or found.record.run_id
    return found, f"branch {branch}, its newest experiment {name}"


def _filed(tracer: GitTracer, one: Experiment) -> tuple[RunManifest, str] | None:
    """Return the manifest and the plan's fingerprint from the result file of the record's commit, if that is right."""
    path = f"experiments/{one.record.version}.json"
    try:
        body = json.loads(tracer.read(one.commit, path, max_bytes=MAX_RESULT_BYTES))
        manifest = RunManifest.load(body["manifest"])
        plan = str(body["plan"])
    except (RefNotFoundError, ValueError, TypeError, KeyError):
        return None  # a note or a tag has no file; one that people changed is none of ours
    except DeepSeekOpsError:
        return None
    return (manifest, plan) if manifest.fingerprint == one.record.manifest else None


def _subject(sources: Sources, one: Experiment, words: str, filed: tuple[RunManifest, str] | None) -> Subject:
    record = one.record
    evidence = _evidence(sources, record.manifest, filed)
    manifest = filed[0] if filed else evidence.manifest if evidence else None
    if manifest is not None:
        _ask_its_registry(sources, manifest)
    for known in (sources.known_versions, sources.stored_versions):
        if same := [version for version in known if version.manifest.fingerprint == record.manifest]:
            return one_of(sources, same, words)
    held = one.source == "commit" and len(one.parents) == 1  # a commit of ours, on the one that was trained
    return Subject(
        found_by=f"{words}, by its record in Git: no registry that was asked has a version of it",
        run=record.run_id,
        manifest=manifest,
        evidence=evidence,
        record=record,
        commit=one.parents[0] if held else one.commit,
    )


def _evidence(sources: Sources, manifest: str, filed: tuple[RunManifest, str] | None) -> TrainingEvidence | None:
    store = sources.datasets.store
    try:
        if filed is not None:
            return find_evidence(store, filed[1], filed[0])
        name = f"/lineage/{manifest}.json"
        keys = (info.key for info in islice(store.list("runs/"), MAX_KEYS))
        found = next((key for key in keys if key.endswith(name)), None)
        return parse_evidence(store.get(found)) if found else None
    except DeepSeekOpsError as error:
        sources.say(str(error))
        return None


def _ask_its_registry(sources: Sources, manifest: RunManifest) -> None:
    """Ask the registry that the run's own pipeline file names, where it is another one and answers."""
    config, _ = read_config(sources, manifest)
    if config is None or config.deployment is None:
        return
    uri = config.deployment.destination.path.rstrip("/")
    if uri in {store.uri.rstrip("/") for store in sources.registry_stores}:
        return
    try:
        versions(sources.stores.at(uri), manifest.name)
    except DeepSeekOpsError as error:
        sources.say(str(error))
        return
    sources.add_registry(uri)
