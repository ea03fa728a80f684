"""The links of a lineage that say what came of a training: version, gates, exports, release, rollout, cost."""

from __future__ import annotations

from pydantic import JsonValue

from deepseek_ops.adapters.git.tracing import GitTracer
from deepseek_ops.core.errors import DeepSeekOpsError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import AuditEvent, Checkpoint, Evaluation, ExportedModel, Release
from deepseek_ops.cost import entries_of, summarise
from deepseek_ops.pipeline.deployments import ROLLOUT, RolloutState
from deepseek_ops.pipeline.lineage_made_of import read_config
from deepseek_ops.pipeline.lineage_records import Link
from deepseek_ops.pipeline.lineage_sources import Sources
from deepseek_ops.pipeline.lineage_subject import Subject
from deepseek_ops.pipeline.records_in_git import parse_release
from deepseek_ops.pipeline.releases import RELEASE
from deepseek_ops.registry import Bundle
from deepseek_ops.registry.aliases import history
from deepseek_ops.registry.layout import alias_names, bundle_key


def version_link(registry: ObjectStore, bundle: Bundle, subject: Subject) -> Link:
    """Return the registered version and the aliases that name it, or have named it."""
    version = bundle.model_version()
    moves, missing = _moves(registry, bundle)
    now = sorted({str(move["alias"]) for move in moves if move["until"] is None})
    named = f", {', '.join(now)} now" if now else ""
    return Link(
        part="version",
        summary=f"{bundle.name} {bundle.version}{named}",
        digest=version.bundle,
        stored=f"{registry.uri.rstrip('/')}/{bundle_key(bundle.version)}",
        details={
            "manifest": bundle.manifest.fingerprint,
            "metrics": dict(bundle.metrics),
            "aliases": [dict(move) for move in moves],
            "also_named": list(subject.others),
        },
        missing=tuple(missing),
    )


def training_link(sources: Sources, checkpoint: Checkpoint) -> Link:
    """Return how the training ended."""
    shown = ", ".join(f"{name} {value:.4g}" for name, value in sorted(checkpoint.metrics.items()))
    return Link(
        part="training",
        summary=f"{checkpoint.step} steps, {checkpoint.tokens:,} tokens, {checkpoint.restarts} restarts; {shown}",
        digest=checkpoint.model.fingerprint,
        stored=f"{sources.stores.uri.rstrip('/')}/runs/{checkpoint.plan}",
        details={
            "plan": checkpoint.plan,
            "metrics": dict(checkpoint.metrics),
            "files": len(checkpoint.model.files),
            "bytes": checkpoint.model.num_bytes,
        },
    )


def gates_link(bundle: Bundle) -> Link:
    """Return the verdicts, with the champion each was held against."""
    stages = [_gate(one) for one in bundle.evaluations]
    words = ", ".join(f"{one.stage} {one.verdict}" for one in bundle.evaluations)
    return Link(
        part="gates",
        summary=words or "no gate was asked for",
        details={"stages": stages},
        missing=() if stages else ("the bundle holds no evaluation",),
    )


def exports_link(bundle: Bundle) -> Link:
    """Return the formats, each with how it agrees with the checkpoint."""
    return Link(
        part="exports",
        summary=", ".join(f"{one.format} {one.status}" for one in bundle.exports),
        digest=bundle.checkpoint.model.fingerprint,
        details={"formats": [_export(one) for one in bundle.exports]},
        missing=tuple(
            f"{one.format} is not verified: {one.reason}" for one in bundle.exports if one.status != "verified"
        ),
    )


def release_link(sources: Sources, bundle: Bundle) -> Link:
    """Return the release tag and who approved it: from the facts, or from the tag itself."""
    key = f"{bundle.name}/{bundle.version}"
    fact = sources.fact(RELEASE, key)
    found = Release.load(fact.body) if fact else _released_in_git(sources, bundle)
    events = [_event(*event) for event in sources.audit(f"model/{key}")]
    if found is None:
        return Link(part="release", summary="not released", details={"audit": events})
    approved = f"approved by {found.approved_by}" if found.approved_by else "no approval was asked for"
    return Link(
        part="release",
        summary=f"tag {found.tag}, {approved}",
        digest=found.tag_object,
        stored=f"{bundle.manifest.source.repository} {found.tag}",
        details={
            "tag": found.tag,
            "commit": found.commit,
            "approved_by": found.approved_by,
            "told_by": "facts" if fact else "the tag in Git",
            "audit": events,
        },
    )


def rollout_link(sources: Sources, registry: ObjectStore, bundle: Bundle) -> Link:
    """Return how traffic was moved to the version, and when it was the champion."""
    moves, missing = _moves(registry, bundle)
    served = [move for move in moves if move["alias"] == "champion"]
    config, problem = read_config(sources, bundle.manifest)
    endpoint = config.deployment.endpoint if config and config.deployment else ""
    states = [RolloutState.load(fact.body).rollout for fact in sources.find(ROLLOUT, prefix=f"{endpoint}/")]
    mine = [state for state in states if state.candidate == bundle.version and endpoint]
    if problem:
        missing.append(problem)
    if sources.facts is None:
        missing.append("the steps of rollouts: they are facts alone")
    ended = f"{mine[0].strategy} {mine[0].phase}: {mine[0].reason}" if mine else "no rollout is known"
    since = f"; champion since {served[0]['at']}" if served and served[0]["until"] is None else ""
    return Link(
        part="rollout",
        summary=f"{ended}{since}",
        stored=registry.uri,
        details={
            "endpoint": endpoint,
            "rollouts": [state.dump() for state in mine],
            "champion": [dict(move) for move in served],
        },
        missing=tuple(missing),
    )


def cost_link(sources: Sources, runs: list[str]) -> Link:
    """Return what the runs cost that made the result."""
    facts = sources.facts
    if facts is None:
        return Link(part="cost", summary="not known", missing=("costs are facts alone, and there are none",))
    try:
        entries = [entry for run in dict.fromkeys(runs) if run for entry in entries_of(facts, run)]
    except DeepSeekOpsError as error:
        return Link(part="cost", summary="not known", missing=(str(error),))
    if not entries:
        problem = "no cost was accounted to the run: its results were reused, or its facts are gone"
        return Link(part="cost", summary="not known", missing=(problem,))
    total = summarise(entries)
    return Link(
        part="cost",
        summary=f"{total.usd:.4f} USD for {total.device_seconds:.0f} device-seconds, {total.useful_share:.0%} useful",
        details={**total.model_dump(mode="json"), "runs": list(dict.fromkeys(runs))},
    )


def _moves(registry: ObjectStore, bundle: Bundle) -> tuple[list[dict[str, JsonValue]], list[str]]:
    """Return when which alias named the version, newest first; ``until`` is None while it does."""
    moves: list[dict[str, JsonValue]] = []
    missing: list[str] = []
    for model, alias in alias_names(registry):
        if model != bundle.name:
            continue
        later: str | None = None
        try:
            for entry in history(registry, model, alias):
                if entry.version == bundle.version:
                    moves.append(
                        {"alias": alias, "at": entry.at, "until": later, "actor": entry.actor, "reason": entry.reason}
                    )
                later = entry.at
        except DeepSeekOpsError as error:
            missing.append(f"the history of {alias}: {error}")
    return moves, missing


def _gate(one: Evaluation) -> dict[str, JsonValue]:
    return {
        "stage": one.stage,
        "verdict": str(one.verdict),
        "reason": one.reason,
        "dataset": one.dataset,
        "metrics": dict(one.metrics),
        "items": one.num_items,
        "items_digest": one.items.digest if one.items else None,
        "champion": one.champion,
        "delta": one.delta,
        "interval": list(one.interval) if one.interval else None,
    }


def _export(one: ExportedModel) -> dict[str, JsonValue]:
    return {
        "format": one.format,
        "status": str(one.status),
        "digest": one.files.fingerprint,
        "bytes": one.files.num_bytes,
        "parity": one.parity.model_dump(mode="json") if one.parity else None,
        "details": dict(one.details),
    }


def _event(sequence: int, at: str, event: AuditEvent) -> JsonValue:
    return {"sequence": sequence, "at": at, "actor": event.actor, "action": event.action, "details": event.details}


def _released_in_git(sources: Sources, bundle: Bundle) -> Release | None:
    version = bundle.model_version()

    def look(tracer: GitTracer) -> Release | None:
        for mention in tracer.mentions(f"Bundle: {version.bundle}"):
            record = parse_release(mention.text)
            if mention.by == "tag" and record is not None:
                return Release(
                    name=bundle.name,
                    version=bundle.version,
                    bundle=version.bundle,
                    tag=mention.name,
                    tag_object=mention.object_id,
                    commit=mention.commit,
                    approved_by=record.approved_by,
                )
        return None

    return sources.in_git(look, [bundle.manifest.source.repository])
