"""``deepseek-ops lfs``: the Git LFS server and its tokens.

The secret that signs tokens comes from a file or from ``$DEEPSEEK_OPS_LFS_SECRET``, the store's keys from the ``AWS_*``
variables: a command line is visible to every user of the machine. A token is printed once and kept nowhere.
"""

from __future__ import annotations

import getpass
import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from pydantic import JsonValue

from deepseek_ops.adapters.git_lfs.signing import read_secrets, write_secret
from deepseek_ops.adapters.git_lfs.tokens import Access, Grant, TokenBook, repository_name
from deepseek_ops.adapters.stores import STORE_VARIABLE, open_store
from deepseek_ops.cli import lfs_client

app = typer.Typer(name="lfs", help="Git LFS server: weights pushed by plain git clients.", no_args_is_help=True)
token_app = typer.Typer(name="token", help="Tokens of the Git LFS server.", no_args_is_help=True)
app.add_typer(token_app)
lfs_client.register(app)

Store = Annotated[str, typer.Option("--store", envvar=STORE_VARIABLE, help="Such as s3://bucket/prefix or a folder.")]
SecretFile = Annotated[
    Path | None,
    typer.Option("--secret-file", envvar="DEEPSEEK_OPS_LFS_SECRET_FILE", help="Without it: $DEEPSEEK_OPS_LFS_SECRET."),
]
Repository = Annotated[str, typer.Option("--repository", help="Such as team/model.")]
Subject = Annotated[str | None, typer.Option("--subject", help="Whom the token stands for; this user by default.")]
SSH_SECONDS = 3600


@app.command()
def serve(
    store: Store,
    secret_file: SecretFile = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535)] = 8700,
    tls_cert: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="Its key, PEM.")] = None,
    allow_plain_http: Annotated[bool, typer.Option(help="No TLS although others can connect.")] = False,
    settings: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="JSON file of limits and transfer settings.")
    ] = None,
) -> None:
    """Serve the Git LFS API over a store. Clients: git config lfs.url https://HOST:PORT/team/model"""
    from deepseek_ops.web.lfs import LfsSettings, lfs_app, open_service, token_authoriser
    from deepseek_ops.web.lfs_serving import Address, run_server

    address = Address(host, port, tls_cert, tls_key, allow_plain_http).checked()
    secrets = read_secrets(secret_file, os.environ)
    chosen = LfsSettings.load(json.loads(settings.read_text())) if settings else LfsSettings()
    service = open_service(store, os.environ, secrets, chosen)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    run_server(lfs_app(lambda: service, token_authoriser), address)


@app.command()
def secret(secret_file: Annotated[Path, typer.Option("--secret-file", help="Must not exist yet.")]) -> None:
    """Make a file with a fresh secret that only you can read."""
    write_secret(secret_file)
    _show({"secret_file": str(secret_file)})


@app.command()
def authenticate(
    repository: Annotated[str, typer.Argument(help="As git-lfs gives it.")],
    operation: Annotated[str, typer.Argument(help="upload or download.")],
    url: Annotated[str, typer.Option(help="Address of the LFS server, without the repository.")],
    store: Store,
    secret_file: SecretFile = None,
    subject: Subject = None,
) -> None:
    """Answer git-lfs-authenticate on an SSH host: a token for an hour.

    Call it from a ``git-lfs-authenticate`` on that host's PATH, with ``--subject`` from the key that logged in. Which
    key may do what is that script's to decide. The pure SSH protocol (git-lfs-transfer) is not served.
    """
    if operation not in ("upload", "download"):
        raise typer.BadParameter(f"{operation!r} is neither upload nor download")
    book = TokenBook(open_store(store), read_secrets(secret_file, os.environ))
    access: Access = "write" if operation == "upload" else "read"
    token, grant = book.issue(repository, access, subject or getpass.getuser(), days=SSH_SECONDS / 86_400)
    href = f"{url.rstrip('/')}/{grant.repository}"
    _show({"href": href, "header": {"Authorization": f"Bearer {token}"}, "expires_in": SSH_SECONDS})


@token_app.command("create")
def create_token(
    repository: Repository,
    store: Store,
    secret_file: SecretFile = None,
    write: Annotated[bool, typer.Option("--write", help="May push and lock, not only pull.")] = False,
    days: Annotated[float, typer.Option(help="Valid for so long, at most 366.")] = 90,
    subject: Subject = None,
) -> None:
    """Print a new token. Give it to git as the password, with any user name."""
    book = TokenBook(open_store(store), read_secrets(secret_file, os.environ))
    token, grant = book.issue(repository, "write" if write else "read", subject or getpass.getuser(), days=days)
    _show({"token": token, **_row(grant)})


@token_app.command("list")
def list_tokens(
    store: Store, repository: Annotated[str | None, typer.Option("--repository", help="Only of this one.")] = None
) -> None:
    """Print which tokens were issued, and whether they still open anything."""
    wanted = repository_name(repository) if repository else None
    issued = TokenBook(open_store(store), ()).issued()
    now = datetime.now(UTC).timestamp()
    _show(
        [
            {**_row(grant), "state": "revoked" if revoked else "expired" if grant.expires <= now else "valid"}
            for grant, revoked in issued
            if wanted in (None, grant.repository)
        ]
    )


@token_app.command("revoke")
def revoke_token(
    token_id: Annotated[str, typer.Argument(help="Id of the token, as printed by create and list.")],
    store: Store,
    reason: Annotated[str, typer.Option(help="Kept beside the revocation.")] = "",
) -> None:
    """Take a token back. Servers notice within seconds."""
    TokenBook(open_store(store), ()).revoke(token_id, by=getpass.getuser(), reason=reason)
    _show({"id": token_id, "state": "revoked"})


def _row(grant: Grant) -> dict[str, JsonValue]:
    return {
        "id": grant.id,
        "repository": grant.repository,
        "access": grant.access,
        "subject": grant.subject,
        "expires": datetime.fromtimestamp(grant.expires, UTC).isoformat(),
    }


def _show(value: JsonValue | list[dict[str, JsonValue]]) -> None:
    typer.echo(json.dumps(value, indent=2))
