"""The links of a lineage that say what a model was made of: code, data, environment, base, hyperparameters."""

from __future__ import annotations

from pydantic import JsonValue

from deepseek_ops.adapters.git.tracing import Sought, Trace
from deepseek_ops.core.config import PipelineFile
from deepseek_ops.core.errors import DeepSeekOpsError
from deepseek_ops.core.records import RunManifest, TrainingPlan
from deepseek_ops.pipeline.environment_records import RUN_ENVIRONMENT
from deepseek_ops.pipeline.lineage_evidence import code_files, evidence_place
from deepseek_ops.pipeline.lineage_records import Link
from deepseek_ops.pipeline.lineage_sources import Sources
from deepseek_ops.pipeline.lineage_subject import Subject, version_of_bundle
from deepseek_ops.pipeline.releases import EXPERIMENT
from deepseek_ops.pipeline.runs import config_of
from deepseek_ops.registry import REGISTRY_KIND

_FOUND = {
    "commit": "by its id",
    "tag": "by the tag that records it",
    "tree": "by its tree: another commit has exactly these files",
    "patch-id": "by its patch: another commit makes exactly this change",
    "notes": "by a note on another commit that names this result",
    "message": "by another commit's message that names this result",
}
_EVIDENCE_MISSING = "the store holds no record of what the training was planned from"


def code_link(sources: Sources, subject: Subject, manifest: RunManifest) -> Link:
    """Return the commit: as it was recorded, where it is now, and by what it was found there."""
    source = manifest.source
    found = sources.in_git(
        lambda tracer: _located(tracer.find(_sought(sources, subject, manifest)), tracer.url), [source.repository]
    )
    trace, where = found or (None, "")
    details: dict[str, JsonValue] = {
        "repository": source.repository,
        "ref": source.name,
        "commit": source.commit,
        "tree": manifest.tree,
        "patch_id": manifest.patch_id,
    }
    missing: list[str] = []
    if trace is None:
        missing.append(f"commit {source.commit[:12]} is in no repository that was asked, nor what it held")
    else:
        details |= _trace_details(trace)
        details["found_in"] = where
        details["author"], details["subject"], details["date"] = trace.author, trace.subject, trace.at
        if not trace.refs:
            missing.append("no branch and no tag reaches the commit any more: the server may forget it")
    details |= _stored_code(sources, subject, missing)
    now = "" if trace is None or trace.commit == source.commit else f", now {trace.commit[:12]} {_FOUND[trace.by]}"
    subject_line = f": {trace.subject}" if trace else ""
    return Link(
        part="code",
        summary=f"{source.short} at {source.commit[:12]}{now}{subject_line}",
        digest=source.commit,
        stored=where or source.repository,
        details=details,
        missing=tuple(missing),
    )


def data_link(sources: Sources, manifest: RunManifest) -> Link:
    """Return the dataset version: counts, splits, the raw version and the code it was made from, its checks."""
    if not manifest.dataset:
        return Link(part="data", summary="no dataset version was made", missing=("the run ended before its data",))
    stored = f"{sources.stores.uri.rstrip('/')}/commits/{manifest.dataset}"
    try:
        body = sources.datasets.describe(manifest.dataset)
    except DeepSeekOpsError as error:
        return Link(
            part="data",
            summary=f"version {manifest.dataset[:12]}",
            digest=manifest.dataset,
            stored=stored,
            missing=(str(error),),
        )
    lineage = body.get("lineage")
    made = lineage if isinstance(lineage, dict) else {}
    missing = [] if made else ["the version says nothing of how it was made"]
    raw, raw_missing = _raw(sources, made.get("raw"))
    kept = ("name", "message", "author", "num_files", "num_bytes", "splits", "parents")
    return Link(
        part="data",
        summary=f"{body.get('name')} version {manifest.dataset[:12]}, {body.get('num_files')} files",
        digest=manifest.dataset,
        stored=stored,
        details={
            **{key: body.get(key) for key in kept},
            "prepared_by": made.get("callable"),
            "prepare_code": made.get("code"),
            "parameters": made.get("parameters"),
            "shares": made.get("split"),
            "checks": made.get("gate"),
            "raw": raw,
        },
        missing=(*missing, *raw_missing),
    )


def environment_link(sources: Sources, subject: Subject, manifest: RunManifest) -> Link:
    """Return the environment: its key, image, lock file and, where it was recorded, the packages that were there."""
    config, problem = read_config(sources, manifest)
    missing = [problem] if problem else []
    details: dict[str, JsonValue] = {"hardware": manifest.hardware, "software": manifest.software}
    if config is not None:
        details["image"] = config.jobs.setup.container or ""
        details["lock"] = config.jobs.setup.requirements
    evidence = subject.evidence
    if evidence is None:
        missing.append(f"the lock file: {_EVIDENCE_MISSING}")
    elif evidence.lock:
        entry = _entry_of(sources, subject, evidence.lock, missing)
        details |= {"lock": evidence.lock, "lock_digest": entry}
    else:
        details["lock"] = ""
        missing.append("the commit has no lock file: only the key tells environments apart")
    resolved = trained_with(sources, subject.run)
    if resolved:
        details["resolved"] = resolved
    else:
        missing.append("the packages that were really installed: none were recorded for this run")
    return Link(
        part="environment",
        summary=f"key {manifest.environment[:12]}, {manifest.hardware or 'hardware not recorded'}, "
        f"deepseek-ops {manifest.software}",
        digest=manifest.environment,
        stored=f"{sources.stores.uri.rstrip('/')}/objects" if resolved else "",
        details=details,
        missing=tuple(missing),
    )


def base_link(sources: Sources, manifest: RunManifest) -> Link:
    """Return the model that the training went on from."""
    if not manifest.base:
        return Link(part="base", summary="none: trained from scratch")
    version = version_of_bundle(sources, manifest.base)
    if version is None:
        problem = f"no registry that was asked has a bundle {manifest.base[:12]}"
        return Link(part="base", summary=f"bundle {manifest.base[:12]}", digest=manifest.base, missing=(problem,))
    where = sources.fact(REGISTRY_KIND, version.name)
    return Link(
        part="base",
        summary=f"{version.name} {version.version}",
        digest=manifest.base,
        stored=f"{str(where.body['uri']).rstrip('/')}/{version.bundle_key}" if where else version.bundle_key,
        details={"model": version.name, "version": version.version, "metrics": dict(version.metrics)},
    )


def hyperparameters_link(sources: Sources, subject: Subject, manifest: RunManifest) -> Link:
    """Return what the training was run with, and how it was chosen."""
    evidence = subject.evidence
    details: dict[str, JsonValue] = {"config": manifest.config_digest, "overrides": dict(manifest.overrides)}
    if evidence is None:
        config, problem = read_config(sources, manifest)
        declared = {one.name: one.model_dump(mode="json") for one in config.training.hyperparameters} if config else {}
        values = subject.record.hyperparameters if subject.record else {}
        unknown = () if values else (f"the values that were chosen: {_EVIDENCE_MISSING}",)
        return Link(
            part="hyperparameters",
            summary=f"pipeline file {manifest.config_digest[:12]}",
            digest=manifest.config_digest,
            stored=f"{sources.stores.uri.rstrip('/')}/objects",
            details={**details, "declared": declared, **({"values": dict(values)} if values else {})},
            missing=(*([problem] if problem else []), *unknown),
        )
    details |= {"values": decided(evidence.plan), "plan": evidence.plan.fingerprint}
    chosen = "every value is fixed in the pipeline file"
    if evidence.study:
        reached = "" if evidence.objective is None else f" with {evidence.objective:.6g}"
        chosen = f"trial #{evidence.trial} of {evidence.trials} of study {evidence.study}{reached}"
        details |= {"study": evidence.study, "trial": evidence.trial, "objective": evidence.objective}
    return Link(
        part="hyperparameters",
        summary=chosen,
        digest=evidence.plan.fingerprint,
        stored=evidence_place(sources.datasets.store, evidence.plan.fingerprint, evidence.manifest),
        details=details,
    )


def decided(plan: TrainingPlan) -> dict[str, JsonValue]:
    """Return everything of a plan that decides the weights, beside data, base, environment and seed."""
    return {
        **plan.hyperparameters.model_dump(mode="json", exclude_none=True),
        "method": plan.method,
        "precision": plan.precision,
        "zero_stage": plan.zero_stage,
        "world_size": plan.world_size,
    }


def trained_with(sources: Sources, run: str) -> str:
    """Return the blob that lists the packages a run's training had; empty when none was recorded."""
    found = sources.find(RUN_ENVIRONMENT, prefix=f"{run}/train-") if run else []
    return next((str(fact.body["environment"]) for fact in found), "")


def read_config(sources: Sources, manifest: RunManifest) -> tuple[PipelineFile | None, str]:
    """Return the run's pipeline file, or why it cannot be read."""
    try:
        return config_of(sources.stores.blobs, manifest), ""
    except DeepSeekOpsError as error:
        return None, f"the pipeline file: {error}"


def _sought(sources: Sources, subject: Subject, manifest: RunManifest) -> Sought:
    bundle = subject.bundle
    fact = sources.fact(EXPERIMENT, f"{bundle.name}/{bundle.version}") if bundle else None
    lines = [f"Manifest: {manifest.fingerprint}"]
    if subject.run:
        lines.append(f"Run-Id: {subject.run}")
    return Sought(
        commit=manifest.source.commit,
        tree=manifest.tree,
        patch_id=manifest.patch_id,
        lines=tuple(lines),
        tags=(str(fact.body["tag"]),) if fact else (),
    )


def _located(trace: Trace | None, url: str) -> tuple[Trace, str] | None:
    return (trace, url) if trace else None


def _trace_details(trace: Trace) -> dict[str, JsonValue]:
    return {
        "now": trace.commit,
        "found_by": trace.by,
        "found_at": trace.detail,
        "tree_now": trace.tree,
        "reached_by": list(trace.refs),
    }


def _stored_code(sources: Sources, subject: Subject, missing: list[str]) -> dict[str, JsonValue]:
    """Return the commit's files as the store holds them: they can be written out when Git has lost the commit."""
    if subject.evidence is None:
        missing.append(f"a copy of the code in the store: {_EVIDENCE_MISSING}")
        return {}
    try:
        files = code_files(sources.stores.blobs, subject.evidence)
    except DeepSeekOpsError as error:
        missing.append(f"the copy of the code in the store: {error}")
        return {"files_digest": subject.evidence.code}
    return {"files_digest": subject.evidence.code, "files": len(files.files), "bytes": files.num_bytes}


def _entry_of(sources: Sources, subject: Subject, path: str, missing: list[str]) -> str:
    if subject.evidence is None:
        return ""
    try:
        files = code_files(sources.stores.blobs, subject.evidence).files
    except DeepSeekOpsError as error:
        missing.append(f"the lock file: {error}")
        return ""
    return next((entry.digest for entry in files if entry.path == path), "")


def _raw(sources: Sources, raw: JsonValue) -> tuple[JsonValue, list[str]]:
    """Return the raw version with where it was ingested from."""
    if not isinstance(raw, dict):
        return ({"files_digest": raw} if raw else None), []
    try:
        body = sources.datasets.describe(str(raw.get("version")))
    except DeepSeekOpsError as error:
        return raw, [f"the raw version: {error}"]
    came = body.get("lineage")
    uri = came.get("uri") if isinstance(came, dict) else None
    return {**raw, "uri": uri, "num_files": body.get("num_files"), "num_bytes": body.get("num_bytes")}, []
