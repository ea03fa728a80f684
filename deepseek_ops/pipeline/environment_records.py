"""What every run really ran with: stored once as a blob, named by a fact for each job, and compared.

Facts ``environment`` (key: the job) name the blob; facts ``run-environment`` (key: run/job) say which jobs a run
used, also those whose results it found. The manifest's key says what was asked for, these say what was there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Literal

from pydantic import Field, JsonValue

from deepseek_ops.core.environments import EnvironmentLock, ResolvedEnvironment
from deepseek_ops.core.errors import InvalidRecordError, ObjectExistsError
from deepseek_ops.core.ports import Blobs, Facts
from deepseek_ops.core.records import Digest, Record, canonical_json
from deepseek_ops.pipeline.environment import EnvironmentMismatchError, marker_holds

ENVIRONMENT = "environment"
RUN_ENVIRONMENT = "run-environment"
EVENT = "environment"
"""Kind of the event in which a job says what it runs with."""


class EnvironmentDiff(Record):
    """What differs between two environments. Versions are (before, after)."""

    changed: dict[str, tuple[str, str]] = Field(default_factory=dict)
    added: dict[str, str] = Field(default_factory=dict)
    removed: dict[str, str] = Field(default_factory=dict)
    machine: dict[str, tuple[str, str]] = Field(default_factory=dict, description="python, platform, cpu, gpu, driver.")

    def __bool__(self) -> bool:
        return bool(self.changed or self.added or self.removed or self.machine)

    def lines(self) -> list[str]:
        """Return the differences for people, one a line."""
        return [
            *(f"~ {name} {old or '(none)'} -> {new or '(none)'}" for name, (old, new) in self.machine.items()),
            *(f"~ {name} {old} -> {new}" for name, (old, new) in self.changed.items()),
            *(f"+ {name} {version}" for name, version in self.added.items()),
            *(f"- {name} {version}" for name, version in self.removed.items()),
        ]


def record_environment(
    blobs: Blobs, facts: Facts, events: Iterable[Mapping[str, JsonValue]], *, job: str, run: str
) -> ResolvedEnvironment | None:
    """Store what a job said it ran with and return it; None when it said nothing, as it never came to run."""
    resolved = said_by(events)
    if resolved is None:
        return None
    digest = blobs.put(canonical_json(resolved.dump()))
    _note(facts, ENVIRONMENT, job, {"environment": digest}, run)
    _note(facts, RUN_ENVIRONMENT, f"{run}/{job}", {"environment": digest, "job": job}, run)
    return resolved


def link_environment(facts: Facts, *, job: str, run: str) -> None:
    """Note that a run uses the result of a job that ran before, and so its environment."""
    known = facts.get(ENVIRONMENT, job)
    if known is not None:
        _note(facts, RUN_ENVIRONMENT, f"{run}/{job}", {**known.body, "job": job}, run)


def said_by(events: Iterable[Mapping[str, JsonValue]]) -> ResolvedEnvironment | None:
    """Return what the newest attempt of a job said it runs with, or None."""
    for event in reversed(list(events)):
        if event.get("kind") == EVENT:
            body = {name: event[name] for name in ResolvedEnvironment.model_fields if name in event}
            try:
                return ResolvedEnvironment.load(body)
            except InvalidRecordError:
                return None
    return None


def environment_digests(facts: Facts, run: str) -> dict[str, Digest]:
    """Return job -> digest of what it ran with, for all jobs that a run used."""
    found = facts.find(RUN_ENVIRONMENT, prefix=f"{run}/")
    return {str(fact.body["job"]): str(fact.body["environment"]) for fact in found}


def load_environment(blobs: Blobs, digest: Digest) -> ResolvedEnvironment:
    """Return a stored environment. Raises ObjectNotFoundError, IntegrityError."""
    return ResolvedEnvironment.load(json.loads(blobs.get(digest)))


def environments_of_run(blobs: Blobs, facts: Facts, run: str) -> dict[str, ResolvedEnvironment]:
    """Return job -> what it ran with, for all jobs that a run used."""
    digests = environment_digests(facts, run)
    loaded = {digest: load_environment(blobs, digest) for digest in set(digests.values())}
    return {job: loaded[digest] for job, digest in digests.items()}


def environment_diff(before: ResolvedEnvironment, after: ResolvedEnvironment) -> EnvironmentDiff:
    """Return what differs, names sorted; a package from another commit of its repository has changed."""
    old = {name: _shown(one.version, one.source) for name, one in sorted(before.packages.items())}
    new = {name: _shown(one.version, one.source) for name, one in sorted(after.packages.items())}
    were, are = _machine(before), _machine(after)
    return EnvironmentDiff(
        changed={name: (old[name], new[name]) for name in old if name in new and old[name] != new[name]},
        added={name: version for name, version in new.items() if name not in old},
        removed={name: version for name, version in old.items() if name not in new},
        machine={
            name: (were.get(name, ""), are.get(name, ""))
            for name in sorted({*were, *are})
            if were.get(name, "") != are.get(name, "")
        },
    )


def drift(lock: EnvironmentLock, resolved: ResolvedEnvironment) -> tuple[str, ...]:
    """Return the pins that a job did not run with, a phrase each."""
    wrong = []
    for pin in lock.pins:
        if not marker_holds(pin.marker) or (lock.python and not resolved.python.split()[-1].startswith(lock.python)):
            continue
        found = resolved.packages.get(pin.name)
        if found is None:
            wrong.append(f"{pin.requirement} was not installed")
        elif pin.version and pin.version not in (found.version, found.version.partition("+")[0]):
            wrong.append(f"{pin.name}=={pin.version}, ran with {found.version}")
    return tuple(wrong)


def check_drift(
    lock: EnvironmentLock | None, resolved: ResolvedEnvironment | None, *, policy: Literal["error", "warn"]
) -> tuple[str, ...]:
    """Return what a job ran with otherwise than locked, to warn of. Raises EnvironmentMismatchError under ``error``."""
    wrong = drift(lock, resolved) if lock and resolved else ()
    if lock and wrong and policy == "error":
        raise EnvironmentMismatchError(lock.file, wrong)
    return wrong


def _machine(environment: ResolvedEnvironment) -> dict[str, str]:
    return {"python": environment.python, "platform": environment.platform, **environment.hardware}


def _shown(version: str, source: str) -> str:
    return f"{version} ({source})" if source else version


def _note(facts: Facts, kind: str, key: str, body: Mapping[str, JsonValue], run: str) -> None:
    """Insert a fact; a job that was tried again has the environment of its newest attempt."""
    try:
        facts.insert(kind, key, dict(body), run=run)
    except ObjectExistsError:
        known = facts.get(kind, key)
        if known is not None and known.body != dict(body):
            facts.update(known, dict(body))
