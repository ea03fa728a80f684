"""Who is asked about lineage, and what happens when somebody does not answer: the rest is told, and who was silent.

Facts are the quickest to ask and the easiest to lose. The store (bundles, dataset commits, evidence) and Git (records
in messages, tags and notes) know everything that identifies a result; only accounts and moves of traffic are facts
alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from deepseek_ops.adapters.git.tracing import GitTracer
from deepseek_ops.core.errors import DeepSeekOpsError
from deepseek_ops.core.ports import Fact, Facts, ObjectStore
from deepseek_ops.core.records import AuditEvent, ModelVersion
from deepseek_ops.data import DatasetRepository
from deepseek_ops.pipeline.registration import Stores
from deepseek_ops.registry import REGISTRY_KIND, VERSION_KIND, versions

_T = TypeVar("_T")
OpenTracer = Callable[[str], GitTracer]


@dataclass
class Sources:
    """Everybody who can be asked."""

    stores: Stores
    facts: Facts | None = None
    """None: the database is gone, or not known."""
    registries: tuple[str, ...] = ()
    """URIs of registries beside those that the facts name."""
    repositories: tuple[str, ...] = ()
    """URLs that are looked into before the recorded one: where a repository is now."""
    open_tracer: OpenTracer | None = None
    degraded: list[str] = field(default_factory=list)
    """Sentences: who did not answer, and what that leaves open."""
    _tracers: dict[str, GitTracer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.facts is None:
            self.say("no database of facts: runs, rollouts, costs and audit are told by the store and Git alone")

    def say(self, problem: str) -> None:
        """Note a degradation, once."""
        if problem not in self.degraded:
            self.degraded.append(problem)

    def fact(self, kind: str, key: str) -> Fact | None:
        """Return a fact, or None when there is none or nobody to ask."""
        return self._ask(lambda facts: facts.get(kind, key), None)

    def find(self, kind: str, *, prefix: str = "", run: str | None = None) -> list[Fact]:
        """Return facts, newest first; none when there is nobody to ask."""
        return self._ask(lambda facts: facts.find(kind, prefix=prefix, run=run, limit=100_000), [])

    def audit(self, subject: str) -> list[tuple[int, str, AuditEvent]]:
        """Return the audit events of a subject, oldest first."""
        return self._ask(lambda facts: facts.audit(subject=subject), [])

    def _ask(self, question: Callable[[Facts], _T], otherwise: _T) -> _T:
        if self.facts is None:
            return otherwise
        try:
            return question(self.facts)
        except DeepSeekOpsError as error:
            self.say(str(error))
            return otherwise

    @cached_property
    def registry_stores(self) -> list[ObjectStore]:
        """The registries: those that were given, those that the facts name, and ``registry/`` of the main store."""
        named = [str(fact.body["uri"]) for fact in self.find(REGISTRY_KIND)]
        uris = (*self.registries, *named, f"{self.stores.uri.rstrip('/')}/registry/")
        return [self.stores.at(uri) for uri in dict.fromkeys(uri.rstrip("/") + "/" for uri in uris)]

    @cached_property
    def datasets(self) -> DatasetRepository:
        return DatasetRepository(self.stores.at(self.stores.uri))

    @cached_property
    def known_versions(self) -> list[ModelVersion]:
        """Every registered version, newest first: from the facts, or from the registries when they hold none."""
        facts = [ModelVersion.load(fact.body) for fact in self.find(VERSION_KIND)]
        return facts or self.stored_versions

    @cached_property
    def stored_versions(self) -> list[ModelVersion]:
        """Every version of the registries, newest first, read from their bundles."""
        found: list[ModelVersion] = []
        for store in self.registry_stores:
            try:
                found += versions(store)
            except DeepSeekOpsError as error:
                self.say(str(error))
        return found

    @property
    def recorded(self) -> list[str]:
        """URLs of the repositories that the known versions were trained from."""
        return list(dict.fromkeys(version.manifest.source.repository for version in self.known_versions))

    def add_registry(self, uri: str) -> None:
        """Ask one more registry from now on."""
        self.registries = (*self.registries, uri)
        for cached in ("registry_stores", "known_versions", "stored_versions"):
            self.__dict__.pop(cached, None)

    def tracers(self, recorded: Iterable[str] = ()) -> Iterator[GitTracer]:
        """Yield the repositories to look into: those that were given, then the recorded ones."""
        if self.open_tracer is None:
            self.say("no repository was opened: commits, tags and notes were not looked up")
            return
        for url in dict.fromkeys((*self.repositories, *recorded)):
            if url not in self._tracers:
                try:
                    self._tracers[url] = self.open_tracer(url)
                except DeepSeekOpsError as error:
                    self.say(str(error))
                    continue
            yield self._tracers[url]

    def in_git(self, question: Callable[[GitTracer], _T | None], recorded: Iterable[str] = ()) -> _T | None:
        """Return the first answer of a repository; one that cannot be reached is noted and passed over."""
        for tracer in self.tracers(recorded):
            try:
                answer = question(tracer)
            except DeepSeekOpsError as error:
                self.say(str(error))
                continue
            if answer:
                return answer
        return None
