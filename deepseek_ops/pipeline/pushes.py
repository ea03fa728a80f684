"""Which push a run is of. Airflow may hand one run several events, or one event to two runs; a push is trained once.

A push is one move of a ref, and the same ref may come to the same commit twice: it is known by its repository, ref and
commit and by the move that its watcher announced. Events that older versions announced have no such name; the commit
before stands in for it. Only runs that a push started claim it: what a person, a sweep or a dry run does with the same
commit leaves the push to its own run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from deepseek_ops.core.config import DataArrivalTrigger, PipelineFile, ScheduleTrigger
from deepseek_ops.core.digests import digest_of
from deepseek_ops.core.errors import ObjectExistsError, PermanentError, RefNotFoundError
from deepseek_ops.core.ports import Facts, GitRemote
from deepseek_ops.core.records import GitRef, Record

CLAIM = "claim"
"""Kind of the facts that say which run took a push."""
PUSH_RUN = "push__"
"""How the ids of runs begin that were started for a push from another push's run."""

_WHOLE = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_SHORT = re.compile(r"[0-9a-f]{4,63}")
_UNREADABLE = re.compile(r"[^A-Za-z0-9._+-]")
"""What Airflow refuses in the id of a run, and what would read badly there."""
_SHOWN = 100


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


@dataclass(eq=False)
class ShortCommitError(PermanentError):
    """A shortened commit id where only a whole one names the push exactly."""

    ref: str
    commit: str

    def __str__(self) -> str:
        return (
            f"{self.ref!r}: {self.commit!r} is a shortened commit id, and no branch or tag has the whole name; "
            "write all 40 characters of it (64 in a SHA-256 repository), or the branch alone for its newest commit."
        )


def resolve(git: GitRemote, text: str) -> GitRef:
    """Return the ref a person or another run asked for: a branch, a tag, or ``branch@commit`` for an exact push.

    Names may hold an ``@`` themselves: only what ends in a whole commit id is an exact push. Raises ShortCommitError,
    RefNotFoundError, InvalidRecordError.
    """
    name, _, commit = text.rpartition("@")
    if name and _WHOLE.fullmatch(commit):
        full = name if name.startswith("refs/") else f"refs/heads/{name}"
        return GitRef.load({"repository": git.url, "name": full, "commit": commit})
    try:
        return git.resolve(text)
    except RefNotFoundError:
        if name and _SHORT.fullmatch(commit):
            raise ShortCommitError(text, commit) from None
        raise


def asked_for(git: GitRemote, text: str, conf: object) -> GitRef:
    """Return the ref that a run was started with, as the push it is of where ``conf`` (see ``run_of``) says so."""
    ref = resolve(git, text)
    said = {key: conf[key] for key in ("previous", "move") if conf.get(key)} if isinstance(conf, Mapping) else {}
    return GitRef.load({**ref.model_dump(), **said}) if said else ref


def run_of(push: GitRef) -> tuple[str, dict[str, str]]:
    """Return the id and the conf of the run that is started for a push: the same ones however often it is asked for."""
    about = {"previous": push.previous, "move": push.move}
    said = {key: value for key, value in about.items() if value is not None}
    return f"{PUSH_RUN}{label_of(push)}", {"ref": f"{push.name}@{push.commit}", "cause": "push", **said}


def label_of(push: GitRef) -> str:
    """Return a name of the push for the id of a run: for people, and different for every push."""
    shown = _UNREADABLE.sub("-", push.short)[:_SHOWN]
    return f"{shown}__{push.commit[:12]}__{digest_of(_claim_key(push).encode())[:8]}"


def pushes_of(payloads: Sequence[object]) -> list[GitRef]:
    """Return the pushes in event payloads, oldest first: of several pushes to one ref only the newest."""
    newest: dict[tuple[str, str], GitRef] = {}
    for payload in payloads:
        if isinstance(payload, Mapping):
            ref = GitRef.load({key: value for key, value in payload.items() if key in GitRef.model_fields})
            newest.pop((ref.repository, ref.name), None)
            newest[ref.repository, ref.name] = ref
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

    The others are started as runs of their own with an id made from the push, so a second start changes nothing. They
    are claimed by those runs: where this one dies before it starts them, their watcher announces them again.
    """
    for number, push in enumerate(pushes):
        if claim(facts, push, run=run) == run:
            others = tuple(other for other in pushes[number + 1 :] if not is_claimed(facts, other))
            return Source(ref=push, others=others, cause="push")
    return None


def is_claimed(facts: Facts, ref: GitRef) -> bool:
    """Return whether a run has taken the push."""
    return _holder(facts, ref) is not None


def unclaimed(facts: Facts, pushes: Sequence[GitRef], *, run: str) -> list[GitRef]:
    """Return the pushes that no other run has taken; ``run`` has them now."""
    return [push for push in pushes if claim(facts, push, run=run) == run]


def claim(facts: Facts, ref: GitRef, *, run: str) -> str:
    """Take the push for ``run`` and return the run that has it: this one, or the one that came first."""
    if holder := _holder(facts, ref):
        return holder
    try:
        facts.insert(CLAIM, _claim_key(ref), {"run": run}, run=run)
    except ObjectExistsError:
        return _holder(facts, ref) or run
    return run


def _holder(facts: Facts, ref: GitRef) -> str | None:
    fact = facts.get(CLAIM, _claim_key(ref))
    if fact is None and ref.move is None:  # what an older version announced it may have claimed, too
        fact = facts.get(CLAIM, f"{ref.name}@{ref.commit}")
    return None if fact is None else str(fact.body["run"])


def _claim_key(ref: GitRef) -> str:
    came = ref.move or f"from-{ref.previous or 'nothing'}"
    return f"{digest_of(ref.repository.encode())[:12]}/{ref.name}@{ref.commit}/{came}"
