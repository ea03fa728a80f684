"""The facts about versions and aliases: a copy for queries. The store is the truth, ``rebuild`` restores the copy."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, JsonValue

from deepseek_ops.core.errors import FactConflictError, ObjectExistsError
from deepseek_ops.core.ports import Facts, ObjectStore
from deepseek_ops.core.records import AuditEvent, ModelVersion, Record
from deepseek_ops.registry.aliases import AliasEntry, head
from deepseek_ops.registry.layout import alias_names
from deepseek_ops.registry.reading import versions

VERSION_KIND = "model_version"
"""Facts that hold ModelVersion records, under ``<name>/<version>``."""
ALIAS_KIND = "alias"
"""Facts that hold the newest AliasEntry, under ``<name>/<alias>``."""
REGISTRY_KIND = "registry"
"""Facts that say where a model's registry is: ``{"uri": ...}`` under ``<name>``."""


class RebuildReport(Record):
    """What was restored from the store."""

    registry: str
    versions: int = Field(ge=0)
    aliases: int = Field(ge=0)
    restored: tuple[str, ...] = Field(default=(), description="Facts that were missing or different, as kind/key.")


def version_key(name: str, version: str) -> str:
    return f"{name}/{version}"


def mirror_version(facts: Facts, version: ModelVersion, *, registry: str, actor: str, run: str = "") -> None:
    """Store the fact and the audit event of a new version; nothing happens when the fact is there.

    The event goes first: a process that is killed in between writes it once more, and none is ever lost.
    """
    _put(facts, REGISTRY_KIND, version.name, {"uri": registry}, run=run)
    key = version_key(version.name, version.version)
    if facts.get(VERSION_KIND, key) is None:
        details: dict[str, JsonValue] = {"bundle": version.bundle, "registry": registry}
        details |= {"commit": version.manifest.source.commit, "dataset": version.manifest.dataset}
        _audit(facts, actor, "registered", f"model/{key}", details)
    _put(facts, VERSION_KIND, key, version.dump(), run=run)


def mirror_alias(facts: Facts, entry: AliasEntry) -> None:
    """Store the newest entry of an alias and the audit event of its move, in the order of ``mirror_version``.

    An older entry never replaces a newer one: whoever is slow to mirror finds that somebody went on.
    """
    key = f"{entry.name}/{entry.alias}"
    audited = False
    while True:
        fact = facts.get(ALIAS_KIND, key)
        if fact is not None and AliasEntry.load(fact.body).sequence >= entry.sequence:
            return
        if not audited:
            details: dict[str, JsonValue] = {"version": entry.version, "replaces": entry.replaces}
            details |= {"reason": entry.reason, "sequence": entry.sequence, "entry": entry.fingerprint}
            _audit(facts, entry.actor, "moved_alias", f"alias/{key}", details)
            audited = True
        try:
            if fact is None:
                facts.insert(ALIAS_KIND, key, entry.dump())
            else:
                facts.update(fact, entry.dump())
        except (ObjectExistsError, FactConflictError):
            continue
        return


def rebuild(store: ObjectStore, facts: Facts, *, name: str | None = None, actor: str = "deepseek-ops") -> RebuildReport:
    """Restore the facts about versions and aliases from the store; facts that are right already stay untouched.

    Raises IntegrityError when the store itself is damaged: a copy of that would be believed.
    """
    restored: list[str] = []
    found = versions(store, name)
    for version in reversed(found):
        restored += _restore(facts, REGISTRY_KIND, version.name, {"uri": store.uri})
        restored += _restore(facts, VERSION_KIND, version_key(version.name, version.version), version.dump())
    logs = [pair for pair in alias_names(store) if name in (None, pair[0])]
    for model, alias in logs:
        entry = head(store, model, alias)
        if entry is not None:
            restored += _restore(facts, ALIAS_KIND, f"{model}/{alias}", entry.dump())
    report = RebuildReport(
        registry=store.uri, versions=len(found), aliases=len(logs), restored=tuple(dict.fromkeys(restored))
    )
    if restored:
        _audit(facts, actor, "rebuilt", f"registry/{name or 'all'}", {"uri": store.uri, "facts": len(restored)})
    return report


def _restore(facts: Facts, kind: str, key: str, body: Mapping[str, JsonValue]) -> list[str]:
    return [f"{kind}/{key}"] if _put(facts, kind, key, body) else []


def _put(facts: Facts, kind: str, key: str, body: Mapping[str, JsonValue], *, run: str = "") -> bool:
    """Make the fact say ``body``; return whether it did not."""
    while True:
        fact = facts.get(kind, key)
        if fact is not None and fact.body == dict(body):
            return False
        try:
            if fact is None:
                facts.insert(kind, key, body, run=run)
            else:
                facts.update(fact, body)
        except (ObjectExistsError, FactConflictError):
            continue
        return True


def _audit(facts: Facts, actor: str, action: str, subject: str, details: Mapping[str, JsonValue]) -> None:
    facts.append_audit(AuditEvent(actor=actor, action=action, subject=subject, details=dict(details)))
