"""Options and output that the commands of ``deepseek-ops data`` share."""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from deepseek_ops.adapters.stores import STORE_VARIABLE, open_store
from deepseek_ops.core.errors import ConfigError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.data import ObjectCache

_HELP = "s3://bucket/prefix, file:///folder or a path; keys and endpoint come from the AWS_* variables."
Store = Annotated[str, typer.Option("--store", envvar=STORE_VARIABLE, help=_HELP)]
MaybeStore = Annotated[
    str, typer.Option("--store", envvar=STORE_VARIABLE, help="Where the folder or the pointer names none: as above.")
]
Dataset = Annotated[str, typer.Argument(help="Name of the dataset.")]
Version = Annotated[str, typer.Argument(help="dataset, dataset@branch, tag, id, or a unique beginning of an id.")]
Author = Annotated[str, typer.Option(help="Who; the login name by default.")]
AsTable = Annotated[bool, typer.Option("--table", help="For people, instead of JSON.")]
ExitCode = Annotated[bool, typer.Option("--exit-code", help="Exit status 1 when there are differences.")]
Patterns = Annotated[list[str] | None, typer.Option("--pattern", help="Only paths that match; * crosses folders.")]
Splits = Annotated[list[str] | None, typer.Option("--split", help="Only files of this split; repeatable.")]
CacheFolder = Annotated[
    Path | None, typer.Option("--cache", help="Shared cache of this machine; $DEEPSEEK_OPS_CACHE by default.")
]


def print_json(body: object) -> None:
    """Print a result."""
    typer.echo(json.dumps(body, indent=2, ensure_ascii=False))


def print_rows(rows: Sequence[Mapping[str, object]], columns: Sequence[str], *, table: bool) -> None:
    """Print rows as JSON, or as a table for people."""
    if not table:
        print_json(list(rows))
        return
    shown = Table(*columns)
    for row in rows:
        shown.add_row(*(_cell(row.get(column)) for column in columns))
    Console().print(shown, markup=False)


def _cell(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return " ".join(_cell(one) for one in value)
    text = str(value)
    return text[:12] if len(text) == 64 and not set(text) - set("0123456789abcdef") else text


def author_or_login(author: str) -> str:
    """Return the author, or who is logged in."""
    return author or getpass.getuser()


def opened(store: str, *, fallback: str = "") -> ObjectStore:
    """Return the store that was named, or the one a folder or pointer names."""
    if not store and not fallback:
        raise typer.BadParameter(f"give --store or set {STORE_VARIABLE}")
    return open_store(store or fallback)


def cache_or_default(folder: Path | None) -> ObjectCache | None:
    """Return the cache that was named, or the one of the environment."""
    return ObjectCache(folder) if folder else ObjectCache.from_environment(os.environ)


def read_text(path: Path) -> str:
    """Return a file's text. Raises ConfigError."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), 0, "", f"cannot be read ({error}).", "Check the path.") from None


def write_text(path: Path, text: str) -> None:
    """Replace a file as a whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)
