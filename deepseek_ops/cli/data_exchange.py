"""``deepseek-ops data export`` and ``import``: versions to and from other tools, and ``serve``: versions to look at."""

from __future__ import annotations

import getpass
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from pydantic import JsonValue

from deepseek_ops.adapters.stores import STORE_VARIABLE, open_store
from deepseek_ops.core.ports import Progress
from deepseek_ops.core.records import DatasetVersion
from deepseek_ops.data import DatasetRepository

Store = Annotated[
    str,
    typer.Option("--store", envvar=STORE_VARIABLE, help="s3://bucket/prefix, file:///folder or a path."),
]
Author = Annotated[str, typer.Option(help="Who; the login name by default.")]
Branch = Annotated[str, typer.Option(help="Branch of the dataset.")]
Pattern = Annotated[list[str] | None, typer.Option(help="Only paths that match; * crosses folders.")]
CaseSensitive = Annotated[bool, typer.Option(help="Let names in that differ only in case or accents.")]


class Source(StrEnum):
    """What an import reads."""

    AUTO = "auto"
    DVC = "dvc"
    ARCHIVE = "archive"
    FOLDER = "folder"
    HUGGING_FACE = "hf"
    PREFIX = "prefix"


class Target(StrEnum):
    """What an export writes."""

    AUTO = "auto"
    DVC = "dvc"
    FOLDER = "folder"
    HUGGING_FACE = "hf"
    PREFIX = "prefix"
    TAR = "tar"
    TAR_ZST = "tar.zst"
    ZIP = "zip"
    PARQUET = "parquet"
    JSONL = "jsonl"
    CSV = "csv"


class Splits(StrEnum):
    """Where splits come from."""

    NONE = "none"
    PATH = "path"


def register(app: typer.Typer) -> None:
    """Add the commands to the ``data`` group."""
    app.command("export")(export_version)
    app.command("import")(import_version)
    app.command("serve")(serve)


def export_version(
    version: Annotated[str, typer.Argument(help="dataset, dataset@branch, tag, id, or a unique beginning of an id.")],
    target: Annotated[str, typer.Argument(help="File, folder, or the URI of a prefix or a DVC remote.")],
    store: Store,
    format_: Annotated[Target, typer.Option("--format", help="By the target's name where it is not given.")] = (
        Target.AUTO
    ),
    pattern: Pattern = None,
    split: Annotated[str, typer.Option(help="Only files of this split.")] = "",
    dvc_file: Annotated[Path | None, typer.Option(help="Where the .dvc file goes; `<dataset>.dvc` by default.")] = None,
) -> None:
    """Write a version for another tool: a DVC remote, a folder, a prefix, an archive, or a table of its files."""
    from deepseek_ops.cli.data_exchange_targets import Export, export_to, guess_target

    repository = DatasetRepository(open_store(store))
    digest = repository.resolve(version)
    job = Export(repository, repository.load(digest), store, target, tuple(pattern or ()), split, dvc_file)
    kind = guess_target(target) if format_ is Target.AUTO else format_.value
    with progress_line() as tell:
        _print({"dataset": job.version.name, "version": digest, "format": kind, **export_to(job, kind, tell)})


def import_version(
    source: Annotated[str, typer.Argument(help="A .dvc file, an archive, a folder, or the URI of a prefix.")],
    store: Store,
    name: Annotated[str, typer.Option(help="Name of the dataset.")],
    message: Annotated[str, typer.Option("--message", "-m", help="What it is; where it came from by default.")] = "",
    author: Author = "",
    branch: Branch = "main",
    format_: Annotated[Source, typer.Option("--format", help="By what the source is.")] = Source.AUTO,
    remote: Annotated[
        list[str] | None, typer.Option(help="DVC: cache or remote (folder or URI); by default those of its repository.")
    ] = None,
    history: Annotated[bool, typer.Option(help="DVC: a version for each commit that changed the .dvc file.")] = False,
    splits: Annotated[Splits, typer.Option(help="`path`: train, val and test as the paths say it.")] = Splits.NONE,
    sha256: Annotated[str, typer.Option(help="Archive: refuse it unless it has this digest.")] = "",
    case_sensitive: CaseSensitive = False,
) -> None:
    """Make a version of what another tool wrote. It appears complete or not at all; the same again changes nothing."""
    from deepseek_ops.cli.data_exchange_sources import Import, guess_source, import_from
    from deepseek_ops.data.exchange import Origin, no_split_by_name, split_by_name

    kind = guess_source(source) if format_ is Source.AUTO else format_.value
    origin = Origin(name, message or f"Import {Path(source).name}", author or getpass.getuser(), branch)
    split_of = split_by_name if splits is Splits.PATH else no_split_by_name
    with progress_line() as tell, tempfile.TemporaryDirectory(prefix="deepseek-ops-import-") as scratch:
        job = Import(
            repository=DatasetRepository.open(open_store(store)),
            source=source,
            origin=origin,
            split_of=split_of,
            remotes=tuple(remote or ()),
            history=history,
            sha256=sha256.lower(),
            case_sensitive=case_sensitive,
            scratch=Path(scratch),
            progress=tell,
        )
        versions: list[DatasetVersion] = import_from(job, kind)
    body: list[JsonValue] = [made.dump() for made in versions]
    _print(body if history else body[0])


def serve(
    store: Store,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.")] = 8790,
    tls_cert: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Its key, PEM.")] = None,
    allow_plain_http: Annotated[bool, typer.Option(help="No TLS although others can connect.")] = False,
) -> None:
    """Show a store's datasets in a browser, read-only; the address with its access token is printed once."""
    from deepseek_ops.web.data_server import run_data_server
    from deepseek_ops.web.lfs_serving import Address

    address = Address(host, port, tls_cert, tls_key, allow_plain_http)
    run_data_server(DatasetRepository(open_store(store)), address, tell=typer.echo)


@contextmanager
def progress_line() -> Iterator[Progress | None]:
    """Give a ``Progress`` that draws one line on a terminal's standard error, and nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return

    def tell(line: str, fraction: float | None) -> None:
        share = "" if fraction is None else f"{fraction:5.0%} "
        sys.stderr.write(f"\r\x1b[K{share}{line}")
        sys.stderr.flush()

    try:
        yield tell
    finally:
        sys.stderr.write("\r\x1b[K")


def _print(body: object) -> None:
    typer.echo(json.dumps(body, indent=2, ensure_ascii=False))
