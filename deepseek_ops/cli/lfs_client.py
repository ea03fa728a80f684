"""``deepseek-ops lfs agent|install|status|fetch|pointer|migrate``: Git LFS from inside a clone. JSON on stdout."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from deepseek_ops.adapters.stores import STORE_VARIABLE, open_store
from deepseek_ops.core.errors import ConfigError, DeepSeekOpsError
from deepseek_ops.core.objects import blob_key
from deepseek_ops.core.records import FileEntry

Folder = Annotated[Path, typer.Argument(help="A folder inside the clone.")]
Store = Annotated[
    str,
    typer.Option(
        "--store",
        envvar=STORE_VARIABLE,
        help="s3://bucket/prefix, file:///folder or a path; by default what the clone says. Keys come from AWS_*.",
    ),
]
Patterns = Annotated[
    list[str] | None, typer.Option("--include", help="Glob of weights, such as '*.safetensors'; may be repeated.")
]
Cache = Annotated[
    Path | None, typer.Option("--cache", envvar="DEEPSEEK_OPS_CACHE", help="Shared folder of downloaded objects.")
]


def register(app: typer.Typer) -> None:
    """Add the client side's commands to ``deepseek-ops lfs``."""
    for name, command in (
        ("agent", agent),
        ("install", install),
        ("status", status),
        ("fetch", fetch),
        ("pointer", pointer),
        ("migrate", migrate),
    ):
        app.command(name)(command)


def agent() -> None:
    """Speak git-lfs's transfer protocol on standard input and output; git-lfs starts this, people do not."""
    from deepseek_ops.cli.lfs_agent import serve

    raise typer.Exit(serve())


def install(
    folder: Folder = Path(),
    everywhere: Annotated[
        bool, typer.Option("--global", help="Define the agent for every clone of yours; select it with each clone.")
    ] = False,
) -> None:
    """Let `git lfs` in this clone move objects straight to and from the store, without a server."""
    from deepseek_ops.adapters.git_lfs.config import install_agent

    with _reported():
        _print({"changed": install_agent(folder, everywhere=everywhere)})


def status(folder: Folder = Path(), store: Store = "") -> None:
    """Print for each weight of HEAD whether its content is here and in the store; exit status 1 if it is not there."""
    from deepseek_ops.adapters.git_lfs.config import store_of
    from deepseek_ops.adapters.git_lfs.pointer import LfsPointer, pointers_below
    from deepseek_ops.adapters.git_lfs.worktree_git import git, top_folder

    with _reported():
        top = top_folder(folder)
        here = dict(pointers_below(top))
        listed = json.loads(git(top, "lfs", "ls-files", "--json", "HEAD"))["files"] or []
        opened = open_store(store_of(top, store))
        rows = []
        for file in listed:
            named = LfsPointer(str(file["oid"]), int(file["size"]))
            info = opened.head(blob_key(named.oid))
            stored = info is not None and info.size == named.size
            rows.append({"path": file["name"], **asdict(named), "content": file["name"] not in here, "stored": stored})
        _print({"store": opened.uri, "weights": rows})
    if not all(row["stored"] for row in rows):
        raise typer.Exit(1)


def fetch(folder: Folder = Path(), include: Patterns = None, store: Store = "", cache: Cache = None) -> None:
    """Replace pointers by verified content: only the weights that are asked for, after GIT_LFS_SKIP_SMUDGE=1."""
    from deepseek_ops.adapters.git_lfs.config import store_of
    from deepseek_ops.adapters.git_lfs.fetching import fetch_weights, refresh_index
    from deepseek_ops.adapters.git_lfs.worktree_git import try_git

    with _reported():
        done = fetch_weights(open_store(store_of(folder, store)), folder, tuple(include or ()), cache=cache)
        if try_git(folder, "rev-parse", "--git-dir")[0] == 0:
            refresh_index(folder, done.fetched)
        _print(asdict(done))


def pointer(
    version: Annotated[str, typer.Argument(help="MODEL@VERSION of the registry, or MODEL@ALIAS.")],
    files: Annotated[
        list[str] | None, typer.Argument(help="Paths in the version, such as safetensors/...; all.")
    ] = None,
    registry: Annotated[str, typer.Option("--registry", envvar="DEEPSEEK_OPS_REGISTRY", help="The registry.")] = "",
    store: Store = "",
    into: Annotated[Path, typer.Option(help="Folder of the clone to write below.")] = Path(),
    force: Annotated[bool, typer.Option(help="Replace files that are there.")] = False,
) -> None:
    """Write LFS pointers to registered files: `git add` them, and nothing is uploaded.

    git-lfs refuses to push a pointer whose content is not in the clone, so the clone is told to allow it; the pre-push
    check of `deepseek-ops init` then asks the store.
    """
    from deepseek_ops.adapters.git_lfs.config import set_config, store_of
    from deepseek_ops.pipeline.weight_pointers import registered_files, write_pointers

    with _reported():
        name, at, number = version.rpartition("@")
        if not at or not registry:
            raise ConfigError(version, 0, "", "is no MODEL@VERSION of a known registry.", "Give --registry and both.")
        chosen = registered_files(open_store(registry), name, number, tuple(files or ()))
        written = write_pointers(open_store(store_of(into, store)), into, chosen, replace=force)
        changed = set_config(into, "lfs.allowincompletepush", "true")
        _print({"pointers": [_row(entry) for entry in written], "changed": [changed] if changed else []})


def migrate(
    folder: Folder = Path(),
    include: Patterns = None,
    min_size: Annotated[int, typer.Option(help="Kinds with a file of at least so many bytes.", min=1)] = 5_000_000,
    remote: Annotated[str, typer.Option(help="Whose LFS store gets the objects.")] = "origin",
    do_it: Annotated[bool, typer.Option("--do-it", help="Rewrite; without it only say what would be.")] = False,
) -> None:
    """Take large files out of Git's history into Git LFS: a report, or with --do-it a verified rewrite."""
    from deepseek_ops.adapters.git_lfs.migration import migrate as rewrite
    from deepseek_ops.adapters.git_lfs.survey import large_kinds

    with _reported():
        kinds = large_kinds(folder, min_size)
        if not do_it:
            remedy = "run again with --do-it, and --include for each kind that is to move; all of them without it"
            _print({"dry_run": True, "kinds": [asdict(kind) for kind in kinds], "next": remedy})
            return
        patterns = tuple(include or [kind.pattern for kind in kinds])
        done = rewrite(folder, patterns, remote=remote, environment=os.environ)
        _print({"dry_run": False, **asdict(done), "next": list(done.next_steps)})


def checkout(
    ref: Annotated[str, typer.Argument(help="Tag, branch or tip commit, such as deepseek-v1.1.")],
    target: Annotated[Path, typer.Argument(help="New or empty folder.")],
    repository: Annotated[str, typer.Option(help="URL or folder of the model repository.")] = ".",
    store: Store = "",
    include: Patterns = None,
    weights: Annotated[bool, typer.Option("--weights/--no-weights", help="Also the weights' content.")] = True,
    datasets: Annotated[bool, typer.Option("--datasets", help="Also the data that its pointers name.")] = False,
    cache: Cache = None,
) -> None:
    """Restore a release: its code and its weights together, and with --datasets its data."""
    from deepseek_ops.pipeline.restoring import restore_release

    with _reported():
        chosen = tuple(include or ()) if weights else None
        done = restore_release(
            repository, ref, target, store=store, patterns=chosen, datasets=datasets, cache=cache, open_store=open_store
        )
        _print(done)


def _row(entry: FileEntry) -> dict[str, object]:
    return entry.model_dump(mode="json")


@contextmanager
def _reported() -> Iterator[None]:
    """Turn our errors into one line on stderr and exit status 1."""
    try:
        yield
    except DeepSeekOpsError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


def _print(body: object) -> None:
    typer.echo(json.dumps(body, indent=2, ensure_ascii=False))
