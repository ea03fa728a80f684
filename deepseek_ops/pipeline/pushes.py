"""Which push a run is of. Airflow may hand one run several events, or one event to two runs; a push is trained once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from deepseek_ops.core.config import DataArrivalTrigger, PipelineFile, ScheduleTrigger
from deepseek_ops.core.errors import ObjectExistsError
from deepseek_ops.core.ports import Facts, GitRemote
from deepseek_ops.core.records import GitRef, Record

CLAIM = "claim"
"""Kind of the facts that say which run took a push."""


Cause = Literal["push", "tag", "data", "schedule", "manual"]
"""What started a run: only pushes take turns."""


class Source(Record):
    """The commit a run is of, and the pushes of the same event batch that need runs of their own."""

    ref: GitRef
    others: tuple[GitRef, ...] = ()
    cause: Cause = "manual"
    beside: GitRef | None = None
    """What data or a schedule asked for in the same batch: a run of its own too."""
    beside_cause: Cause = "manual"


def resolve(git: GitRemote, text: str) -> GitRef:
    """Return the ref a person or another run asked for: a branch, a tag, or ``branch@commit`` for an exact push.

    Raises RefNotFoundError, InvalidRecordError.
    """
    name, at, commit = text.partition("@")
    if not at:
        return git.resolve(name)
    full = name if name.startswith("refs/") else f"refs/heads/{name}"
    return GitRef.load({"repository": git.url, "name": full, "commit": commit})


def pushes_of(payloads: Sequence[object]) -> list[GitRef]:
    """Return the pushes in event payloads, oldest first: of several pushes to one ref only the newest."""
    newest: dict[str, GitRef] = {}
    for payload in payloads:
        if isinstance(payload, Mapping):
            ref = GitRef.load({key: value for key, value in payload.items() if key in GitRef.model_fields})
            newest.pop(ref.name, None)
            newest[ref.name] = ref
    return list(newest.values())


def cause_of(conf: object) -> Cause:
    """Return what a run that was started with a ref says it is of; a person says nothing."""
    said = conf.get("cause") if isinstance(conf, Mapping) else None
    return next((one for one in get_args(Cause) if one == said), "manual")


def combined(push: Source | None, beside: Source | None) -> Source:
    """Return one source of a batch: its push, and what else it asked for as a run of its own."""
    if push is None:
        if beside is None:
            raise ValueError("a batch of nothing")
        return beside
    if beside is None or beside.ref.commit == push.ref.commit:
        return push
    return push.evolve(beside=beside.ref, beside_cause=beside.cause)


def unwanted(config: PipelineFile, ref: GitRef, *, arrived: Sequence[str], scheduled: bool) -> str:
    """Return why no trigger of the pipeline file wants the new data (URIs) or the schedule; empty when one does."""
    if scheduled and any(isinstance(one, ScheduleTrigger) for one in config.triggers):
        return ""
    watched = [one.uri for one in config.triggers if isinstance(one, DataArrivalTrigger) and one.run == "retrain"]
    if any(_overlap(uri, prefix) for uri in arrived for prefix in watched):
        return ""
    what = f"new data in {', '.join(sorted(set(arrived)))}" if arrived else "a schedule"
    wish = "data-arrival trigger that retrains for it" if arrived else "schedule trigger any more"
    return f"{what}: the pipeline file of {ref.short} at {ref.commit[:12]} has no {wish}"


def _overlap(uri: str, prefix: str) -> bool:
    one, other = f"{uri.rstrip('/')}/", f"{prefix.rstrip('/')}/"
    return one.startswith(other) or other.startswith(one)


def take(facts: Facts, pushes: Sequence[GitRef], *, run: str) -> Source | None:
    """Return the first push that no other run has taken, now taken by ``run``, and the others; None when all are taken.

    The others are started as runs of their own with an id made from the commit, so a second start changes nothing.
    """
    for number, push in enumerate(pushes):
        if claim(facts, push, run=run) == run:
            return Source(ref=push, others=tuple(pushes[number + 1 :]), cause="push")
    return None


def is_claimed(facts: Facts, ref: GitRef) -> bool:
    """Return whether a run has taken the push."""
    return facts.get(CLAIM, _claim_key(ref)) is not None


def unclaimed(facts: Facts, pushes: Sequence[GitRef], *, run: str) -> list[GitRef]:
    """Return the pushes that no other run has taken; ``run`` has them now."""
    return [push for push in pushes if claim(facts, push, run=run) == run]


def claim(facts: Facts, ref: GitRef, *, run: str) -> str:
    """Take the push for ``run`` and return the run that has it: this one, or the one that came first."""
    key = _claim_key(ref)
    try:
        facts.insert(CLAIM, key, {"run": run}, run=run)
    except ObjectExistsError:
        fact = facts.get(CLAIM, key)
        return str(fact.body["run"]) if fact is not None else run
    return run


def _claim_key(ref: GitRef) -> str:
    return f"{ref.name}@{ref.commit}"
