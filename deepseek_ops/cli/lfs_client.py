"""``deepseek-ops lfs agent|install|status|fetch|pointer|migrate``: Git LFS from inside a clone. JSON on stdout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from deepseek_ops.adapters.stores import STORE_VARIABLE

Folder = Annotated[Path, typer.Argument(help="A folder inside the clone.")]
StoreUri = Annotated[
    str,
    typer.Option(
        "--store",
        envvar=STORE_VARIABLE,
        help="s3://bucket/prefix, file:///folder or a path; by default what the clone says. Keys come from AWS_*.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the client side's commands to ``deepseek-ops lfs``."""
    app.command("agent")(agent)
    app.command("install")(install)


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

    _print({"changed": install_agent(folder, everywhere=everywhere)})


def _print(body: object) -> None:
    typer.echo(json.dumps(body, indent=2, ensure_ascii=False))
