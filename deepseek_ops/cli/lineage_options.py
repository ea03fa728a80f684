"""Where the commands about lineage look: store, registries, facts and repositories, each of which may be away."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from deepseek_ops.adapters.git import open_clone
from deepseek_ops.adapters.git.tracing import GitTracer, open_tracer
from deepseek_ops.adapters.stores import STORE_VARIABLE, open_store
from deepseek_ops.core.errors import DeepSeekOpsError, RefNotFoundError
from deepseek_ops.core.ports import Facts, ObjectStore
from deepseek_ops.data import StoreBlobs
from deepseek_ops.pipeline.lineage_sources import Sources

GIT_USER, GIT_TOKEN = "DEEPSEEK_OPS_GIT_USERNAME", "DEEPSEEK_OPS_GIT_TOKEN"

Store = Annotated[
    str, typer.Option("--store", envvar=STORE_VARIABLE, help="Main store, such as s3://bucket/prefix or file:///dir.")
]
FactsDsn = Annotated[
    str, typer.Option("--facts", envvar="DEEPSEEK_OPS_FACTS", help="Such as sqlite:////dir/facts.db; may be left out.")
]
Registries = Annotated[
    list[str] | None,
    typer.Option(
        "--registry", envvar="DEEPSEEK_OPS_REGISTRY", help="Registry beside those the facts name; repeatable."
    ),
]
Repositories = Annotated[
    list[str] | None,
    typer.Option(
        "--repo",
        help="URL to look into before the recorded one: where a renamed repository is now; of a clone its origin, "
        "then itself; repeatable. "
        f"Login from {GIT_USER} and {GIT_TOKEN}.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Everything, as JSON.")]


@dataclass(frozen=True)
class OpenedStores:
    """The main store and whatever else opens with its credentials."""

    uri: str

    @property
    def blobs(self) -> StoreBlobs:
        return StoreBlobs(open_store(self.uri))

    def at(self, uri: str) -> ObjectStore:
        """Open another URI with the same credentials."""
        return open_store(uri)


@contextmanager
def opened_sources(store: str, facts: str, registries: list[str] | None, repos: list[str] | None) -> Iterator[Sources]:
    """Yield the sources; a database that is away is a note in the answer, not an error."""
    if not store:
        raise typer.BadParameter(f"give --store or set {STORE_VARIABLE}")
    with tempfile.TemporaryDirectory(prefix="deepseek-ops-git-") as scratch:
        cache = Path(os.environ.get("DEEPSEEK_OPS_CACHE") or scratch) / "git"
        known, problem = _facts(facts)
        sources = Sources(
            stores=OpenedStores(store),
            facts=known,
            registries=tuple(registries or ()),
            repositories=tuple(address for repo in repos or () for address in _addresses(repo)),
            open_tracer=lambda url: _tracer(url, cache),
        )
        if problem:
            sources.say(problem)
        yield sources


def _facts(dsn: str) -> tuple[Facts | None, str]:
    from deepseek_ops.adapters.facts import open_facts

    if not dsn:
        return None, ""
    try:
        return open_facts(dsn, migrate=False), ""
    except DeepSeekOpsError as error:
        return None, str(error)


def _tracer(url: str, cache: Path) -> GitTracer:
    username, token = os.environ.get(GIT_USER, ""), os.environ.get(GIT_TOKEN, "")
    return open_tracer(url, username=username, password=token, cache=cache)


def _addresses(repository: str) -> tuple[str, ...]:
    """Return the URLs of a repository: of a clone where it was cloned from, as that knows newer results, and itself."""
    folder = Path(repository).expanduser()
    if "://" in repository or not folder.is_dir():
        return (repository,)
    clone = open_clone(folder)
    try:
        return (clone.origin(), clone.database)
    except RefNotFoundError:
        return (clone.database,)
