"""``deepseek-ops data``: dataset versions from the command line. JSON on stdout."""

from __future__ import annotations

import getpass
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from pydantic import JsonValue

from deepseek_ops.adapters.stores import STORE_VARIABLE, open_store
from deepseek_ops.cli import data_content, data_exchange, data_gc
from deepseek_ops.core.errors import ConfigError
from deepseek_ops.data import DatasetPointer, DatasetRepository, pointer_text, read_pointer

data_app = typer.Typer(no_args_is_help=True, help="Dataset versions.")
data_exchange.register(data_app)
data_content.register(data_app)
data_gc.register(data_app)

Store = Annotated[
    str,
    typer.Option(
        "--store",
        envvar=STORE_VARIABLE,
        help="s3://bucket/prefix, file:///folder or a path; keys and endpoint come from the AWS_* variables.",
    ),
]
Dataset = Annotated[str, typer.Argument(help="Name of the dataset.")]
Version = Annotated[str, typer.Argument(help="dataset, dataset@branch, tag, id, or a unique beginning of an id.")]
Branch = Annotated[str, typer.Option(help="Branch of the dataset.")]


def _print(body: object) -> None:
    typer.echo(json.dumps(body, indent=2, ensure_ascii=False))


@data_app.command()
def commit(
    folder: Annotated[Path, typer.Argument(help="Folder that is to be the newest version.")],
    store: Store,
    name: Annotated[str, typer.Option(help="Name of the dataset.")],
    message: Annotated[str, typer.Option("--message", "-m", help="What changed and why.")],
    author: Annotated[str, typer.Option(help="Who; the login name by default.")] = "",
    branch: Branch = "main",
    parent: Annotated[str, typer.Option(help="Version the branch must be at; any by default.")] = "",
    pointer: Annotated[Path | None, typer.Option(help="Also write the pointer file of a model repository.")] = None,
) -> None:
    """Store a folder as the newest version of a dataset."""
    opened = open_store(store)
    repository = DatasetRepository.open(opened)
    dataset = repository.commit(
        folder,
        name=name,
        message=message,
        author=author or getpass.getuser(),
        branch=branch,
        parent=repository.resolve(parent) if parent else None,
    )
    if pointer is not None:
        _write(pointer, pointer_text(DatasetPointer.of(dataset, opened.uri)))
    _print(dataset.dump())


@data_app.command()
def log(
    dataset: Dataset,
    store: Store,
    branch: Branch = "main",
    limit: Annotated[int, typer.Option(min=1, help="Newest versions to show.")] = 20,
) -> None:
    """List the versions of a dataset, newest first."""
    entries = DatasetRepository(open_store(store)).log(dataset, branch=branch, limit=limit)
    _print([asdict(entry) for entry in entries])


@data_app.command()
def show(version: Version, store: Store) -> None:
    """Print the commit record of a version."""
    repository = DatasetRepository(open_store(store))
    digest = repository.resolve(version)
    body: dict[str, JsonValue] = {"version": digest, **repository.describe(digest)}
    _print(body)


@data_app.command()
def diff(old: Version, new: Version, store: Store) -> None:
    """List the paths that differ between two versions."""
    _print(asdict(DatasetRepository(open_store(store)).diff(old, new)))


@data_app.command()
def checkout(
    target: Annotated[Path, typer.Argument(help="New or empty folder.")],
    version: Annotated[str, typer.Option(help="dataset, dataset@branch, tag or id.")] = "",
    pointer: Annotated[Path | None, typer.Option(help="Take version and store from this pointer file.")] = None,
    store: Annotated[str, typer.Option("--store", envvar=STORE_VARIABLE, help="The pointer's by default.")] = "",
    pattern: Annotated[list[str] | None, typer.Option(help="Only paths that match; * crosses folders.")] = None,
) -> None:
    """Write a version to a folder, every byte verified."""
    if bool(version) == (pointer is not None):
        raise typer.BadParameter("give either --version or --pointer")
    if pointer is not None:
        pointed = read_pointer(_read(pointer), file=str(pointer))
        version, store = pointed.version, store or pointed.store
    if not store:
        raise typer.BadParameter(f"give --store or set {STORE_VARIABLE}")
    repository = DatasetRepository(open_store(store))
    digest = repository.resolve(version)
    repository.checkout(digest, target, patterns=tuple(pattern or ()))
    _print({**repository.load(digest).dump(), "target": str(target)})


@data_app.command()
def verify(version: Version, store: Store) -> None:
    """Read every byte of a version; exit status 1 when something is missing or damaged."""
    report = DatasetRepository(open_store(store)).verify(version)
    _print(asdict(report))
    for problem in report.problems:
        typer.echo(problem, err=True)
    if report.problems:
        raise typer.Exit(1)


@data_app.command()
def tag(name: Annotated[str, typer.Argument(help="Such as dataset-v1.1.")], version: Version, store: Store) -> None:
    """Name a version for ever."""
    digest = DatasetRepository.open(open_store(store)).tag(name, version)
    _print({"tag": name, "version": digest})


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), 0, "", f"cannot be read ({error}).", "Check the path.") from None


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
