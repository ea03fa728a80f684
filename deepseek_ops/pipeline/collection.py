"""Who names what a store holds, asked afresh for each plan and each sweep: facts, registries, Git repositories.

The store itself knows which versions its branches, tags and pins name (``data.gc_marks``). What runs, results and
bundles name lies in the database of facts, what people have committed lies in Git. Whoever is not asked might name
anything: then no version is dropped and no loose object deleted, and the plan says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from pydantic import JsonValue

from deepseek_ops.core.ports import Facts, GitRemote, ObjectStore
from deepseek_ops.core.records import Record
from deepseek_ops.data.gc_history import RetentionPolicy
from deepseek_ops.data.gc_names import Names
from deepseek_ops.data.gc_plan import CollectionPlan, plan_collection
from deepseek_ops.data.gc_runs import pending_runs
from deepseek_ops.data.gc_sweep import DEFAULT_TIMES, SweepReport, SweepTimes, TooEarlyError, discard_older, sweep
from deepseek_ops.registry import REGISTRY_KIND

POINTER_BYTES = 4096
"""Pointers of datasets and of Git LFS are smaller."""
RECORDS = ("versions/", "identities/", "aliases/")
"""Where a registry keeps its claims, each the whole bundle of a version, and its logs."""

Say = Callable[[str], None]


class Opens(Protocol):
    """Opens stores with one set of credentials."""

    def at(self, uri: str) -> ObjectStore:
        """Open a URI."""


@dataclass(frozen=True)
class Witnesses:
    """Everybody who can name something in the store."""

    facts: Facts | None = None
    """The database of facts; None where it is not known."""
    repositories: Sequence[GitRemote] | None = None
    """Every model repository that has pointers into the store; None where they are not known."""
    registries: Sequence[str] = ()
    """URIs of registries beside those that the facts name."""
    stores: Opens | None = None
    """Opens registries; needed where there are any."""
    history: bool = True
    """Whether old commits of the repositories count, not only what their refs point to."""
    standalone: bool = False
    """Nobody but the store itself names anything in it: somebody has said so."""


class CollectionOutcome(Record):
    """What one call of ``collect`` came to."""

    plan: CollectionPlan | None = None
    """A new plan; None when there was one to carry out."""
    swept: SweepReport | None = None
    waiting_run: str = ""
    """A plan whose second interval is not over."""
    waiting_seconds: float = 0.0


def ask(witnesses: Witnesses, *, say: Say) -> Names:
    """Return what the witnesses name. Raises what their ports raise: who does not answer might name anything."""
    if witnesses.standalone:
        return Names(asked_facts=True, asked_git=True)
    names = Names()
    seen = _Seen(set(), set(witnesses.registries))
    if witnesses.facts is None:
        names.notes.append("no database of facts was given: loose objects and versions that it could name stay")
    else:
        _ask_facts(witnesses.facts, names, seen)
        names.asked_facts = True
    _ask_registries(witnesses, names, seen, say)
    if witnesses.repositories is None:
        names.notes.append("no Git repository was given: loose objects and versions that one could name stay")
    else:
        _ask_repositories(witnesses.repositories, witnesses.history, names, say)
        names.asked_git = _all_given(witnesses.repositories, names, seen)
    return names


@dataclass
class _Seen:
    """Other places that the facts tell of."""

    repositories: set[str]
    registries: set[str]


def _ask_facts(facts: Facts, names: Names, seen: _Seen) -> None:
    for fact in facts.scan():
        names.add_json(fact.body)
        names.add_json(fact.key)
        seen.repositories.update(_repositories(fact.body))
        if fact.kind == REGISTRY_KIND:
            seen.registries.add(str(fact.body["uri"]))


def _repositories(value: JsonValue) -> Iterable[str]:
    """Yield the ``repository`` of every Git ref in a record."""
    if isinstance(value, dict):
        url = value.get("repository")
        if isinstance(url, str) and url and "commit" in value:
            yield url
        for item in value.values():
            yield from _repositories(item)
    elif isinstance(value, list):
        for item in value:
            yield from _repositories(item)


def _ask_registries(witnesses: Witnesses, names: Names, seen: _Seen, say: Say) -> None:
    for uri in sorted(seen.registries):
        if witnesses.stores is None:
            names.asked_facts = False
            names.notes.append(f"registry {uri} was not read: loose objects that its bundles name stay")
            continue
        registry = witnesses.stores.at(uri)
        count = 0
        for info in chain.from_iterable(registry.list(prefix) for prefix in RECORDS):
            names.add_document(registry.get(info.key))
            count += 1
        say(f"registry {uri}: {count} records read")


def _ask_repositories(repositories: Sequence[GitRemote], history: bool, names: Names, say: Say) -> None:
    for repository in repositories:
        count = 0
        for text in repository.small_texts(max_bytes=POINTER_BYTES, history=history):
            names.add_text(text)
            count += 1
        say(f"repository {repository.url}: {count} commits and small files read")


def _all_given(repositories: Sequence[GitRemote], names: Names, seen: _Seen) -> bool:
    missing = sorted(seen.repositories - {repository.url for repository in repositories})
    for url in missing:
        names.notes.append(f"repository {url} is named in the facts and was not given: what it could name stays")
    return not missing


def collect(
    store: ObjectStore,
    policy: RetentionPolicy,
    witnesses: Witnesses,
    *,
    delete: bool,
    times: SweepTimes = DEFAULT_TIMES,
    say: Say,
) -> CollectionOutcome:
    """Plan, or carry out the plan of an earlier call; without ``delete`` only say what a plan would be.

    A deletion takes two calls, ``policy.settle_days`` apart: the first one plans, the next one sweeps and plans anew.
    Raises what ``plan_collection`` and ``sweep`` raise; calling again goes on.
    """

    def names() -> Names:
        return ask(witnesses, say=say)

    if not delete:
        return CollectionOutcome(plan=plan_collection(store, policy, names, say=say))
    swept, waiting = None, None
    if pending := pending_runs(store):
        discard_older(store, pending[-1])
        try:
            swept = sweep(store, policy, pending[-1], names, times=times, say=say)
        except TooEarlyError as error:
            waiting = error
    if waiting is not None:
        return CollectionOutcome(waiting_run=waiting.run, waiting_seconds=waiting.seconds)
    plan = plan_collection(store, policy, names, write=True, say=say)
    return CollectionOutcome(plan=plan, swept=swept)
