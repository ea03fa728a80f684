"""``deepseek-ops registry``: what is registered, whether it is whole, and what served when.

Everything is read from the store; the facts are a second witness for ``verify`` and what ``rebuild`` restores. Keys
come from the usual ``AWS_*`` variables, and a DSN with a password from ``$DEEPSEEK_OPS_FACTS``: a command line is
visible to every user of the machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Annotated

import typer
from pydantic import JsonValue
from rich.console import Console
from rich.table import Table

from deepseek_ops.core.errors import DeepSeekOpsError, InvalidRecordError
from deepseek_ops.core.ports import Facts, ObjectStore
from deepseek_ops.core.records import ModelVersion
from deepseek_ops.registry import AliasEntry, VerifyReport, VersionNotFoundError
from deepseek_ops.registry import read_bundle as read_registered_bundle
from deepseek_ops.registry import rebuild as rebuild_facts
from deepseek_ops.registry import resolve as resolve_version
from deepseek_ops.registry import verify as verify_registry
from deepseek_ops.registry import versions as registered_versions
from deepseek_ops.registry.aliases import alias_at as alias_entry_at
from deepseek_ops.registry.aliases import head, utc_now
from deepseek_ops.registry.aliases import history as alias_history
from deepseek_ops.registry.layout import alias_names

app = typer.Typer(name="registry", help="Model versions and aliases in the object store.", no_args_is_help=True)

Store = Annotated[
    str, typer.Option("--store", envvar="DEEPSEEK_OPS_REGISTRY", help="Such as s3://model-registry/deepseek/.")
]
FactsDsn = Annotated[
    str | None, typer.Option("--facts", envvar="DEEPSEEK_OPS_FACTS", help="Such as sqlite:////folder/facts.db.")
]
ModelName = Annotated[str | None, typer.Option("--name", help="Only this model; needed where there are several.")]
AsTable = Annotated[bool, typer.Option("--table", help="For people, instead of JSON.")]

_PROBLEM = ("version", "path", "problem", "detail")


@app.command("list")
def list_versions(store: Store, name: ModelName = None, table: AsTable = False) -> None:
    """Print the versions, newest first, with the aliases that name them."""
    with _reported():
        opened = _open_store(store)
        named = _aliases(opened)
        rows = [_row(version, named) for version in registered_versions(opened, name)]
        _show(rows, ("name", "version", "aliases", "commit", "metrics", "bundle"), table=table)


@app.command()
def show(
    version: Annotated[str, typer.Argument(help="Number such as 1.2.0, or alias such as champion.")],
    store: Store,
    name: ModelName = None,
    table: AsTable = False,
) -> None:
    """Print a version's bundle; --table prints its files."""
    with _reported():
        opened = _open_store(store)
        found = resolve_version(opened, _only_name(opened, name), version)
        bundle = read_registered_bundle(opened, found.version, digest=found.bundle)
        if table:
            _show([entry.model_dump(mode="json") for entry in bundle.files], ("path", "size", "digest"), table=True)
        else:
            _print(bundle.dump())


@app.command()
def verify(
    store: Store,
    version: Annotated[str | None, typer.Argument(help="Number or alias; without it everything.")] = None,
    facts: FactsDsn = None,
    name: ModelName = None,
    table: AsTable = False,
) -> None:
    """Read every file back and compare it with what was registered; exit status 1 when something is wrong."""
    with _reported():
        opened = _open_store(store)
        number = version and resolve_version(opened, _only_name(opened, name), version).version
        known = _open_facts(facts, migrate=False) if facts else None
        report = verify_registry(opened, name=name, version=number, facts=known)
        if table:
            _show([one.model_dump(mode="json") for one in report.problems], _PROBLEM, table=True)
            typer.echo(_summary(report))
        else:
            _print({**report.dump(), "ok": report.ok})
    if not report.ok:
        raise typer.Exit(1)


@app.command()
def history(
    alias: Annotated[str, typer.Argument(help="Such as champion.")],
    store: Store,
    name: ModelName = None,
    at: Annotated[str | None, typer.Option(help="Only what it named at this ISO 8601 time (UTC if no zone).")] = None,
    table: AsTable = False,
) -> None:
    """Print every move of an alias, newest first, or what it named at a time."""
    with _reported():
        opened = _open_store(store)
        model = _only_name(opened, name)
        if at is None:
            moves = list(alias_history(opened, model, alias))
        else:
            entry = alias_entry_at(opened, model, alias, _moment(at))
            moves = [entry] if entry else []
        if not moves:
            raise VersionNotFoundError(opened.uri, f"alias {alias!r} of {model}" + (f" at {at}" if at else ""))
        rows = [move.model_dump(mode="json", exclude={"previous", "operation"}) for move in moves]
        _show(rows, ("at", "version", "replaces", "actor", "reason"), table=table)


@app.command()
def rebuild(
    store: Store,
    facts: Annotated[str, typer.Option("--facts", envvar="DEEPSEEK_OPS_FACTS", help="Database to restore.")],
    name: ModelName = None,
) -> None:
    """Restore the facts about versions and aliases from the store."""
    with _reported():
        report = rebuild_facts(_open_store(store), _open_facts(facts, migrate=True), name=name, actor="cli")
        _print(report.dump())


@contextmanager
def _reported() -> Iterator[None]:
    """Turn our errors into one line on stderr and exit status 1."""
    try:
        yield
    except DeepSeekOpsError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


def _open_store(uri: str) -> ObjectStore:
    from deepseek_ops.adapters.stores import open_store

    return open_store(uri)


def _open_facts(dsn: str, *, migrate: bool) -> Facts:
    from deepseek_ops.adapters.facts import open_facts

    return open_facts(dsn, migrate=migrate)


def _only_name(store: ObjectStore, name: str | None) -> str:
    """Return the model's name, which may be left out in a registry of one model."""
    if name is not None:
        return name
    names = sorted({version.name for version in registered_versions(store)})
    if len(names) == 1:
        return names[0]
    problem = f"it has {', '.join(names)}: choose one with --name" if names else "it is empty"
    raise InvalidRecordError("registry of one model", f"{store.uri}: {problem}")


def _aliases(store: ObjectStore) -> dict[tuple[str, str], list[str]]:
    found: dict[tuple[str, str], list[str]] = {}
    for name, alias in alias_names(store):
        entry: AliasEntry | None = head(store, name, alias)
        if entry is not None:
            found.setdefault((name, entry.version), []).append(alias)
    return found


def _row(version: ModelVersion, aliases: Mapping[tuple[str, str], Sequence[str]]) -> dict[str, JsonValue]:
    return {
        "name": version.name,
        "version": version.version,
        "aliases": list(aliases.get((version.name, version.version), ())),
        "commit": version.manifest.source.commit,
        "dataset": version.manifest.dataset,
        "metrics": dict(version.metrics),
        "bundle": version.bundle,
    }


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        example = utc_now().strftime("%Y-%m-%dT%H:%M:%SZ")
        raise InvalidRecordError("time", f"--at={text!r}; write one such as {example}") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _summary(report: VerifyReport) -> str:
    verdict = "OK" if report.ok else f"{len(report.problems)} problems"
    return f"{verdict}: {len(report.versions)} versions, {report.num_files} files, {report.num_bytes} bytes read"


def _print(value: JsonValue) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _show(rows: Sequence[Mapping[str, JsonValue]], columns: Sequence[str], *, table: bool) -> None:
    if not table:
        _print([dict(row) for row in rows])
        return
    shown = Table(*columns)
    for row in rows:
        shown.add_row(*(_cell(row.get(column), column) for column in columns))
    Console().print(shown, markup=False)


def _cell(value: JsonValue, column: str) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {number:.4g}" for name, number in value.items() if isinstance(number, float))
    if isinstance(value, list):
        return ", ".join(map(str, value))
    shorten: Callable[[str], str] = (lambda text: text[:12]) if column in ("commit", "bundle", "digest") else str
    return "" if value is None else shorten(str(value))
