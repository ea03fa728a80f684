"""Where the commands that read records find the repository: a clone as it lies there, or a URL."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from deepseek_ops.adapters.git import Clone, GitRepository, open_clone, open_git
from deepseek_ops.core.errors import RefNotFoundError

GIT_TOKEN = "DEEPSEEK_OPS_GIT_TOKEN"  # noqa: S105  (the name of a variable)
Repo = Annotated[str, typer.Option("--repo", help=f"A clone, or a URL (token in ${GIT_TOKEN}).")]

_URL = re.compile(r"^(?:[a-z][a-z0-9+.-]*://|[^/@\s]+@[^/:\s]+:)")


def opened(repo: str) -> Clone | GitRepository:
    """Return the clone at a path, or the repository at a URL."""
    return remote(repo) if _URL.match(repo) else open_clone(Path(repo).expanduser())


def remote(repo: str, *, username: str = "") -> GitRepository:
    """Return the repository at a URL; for a clone, the one that it calls ``origin``, and itself where it has none."""
    url = repo if _URL.match(repo) else _origin(open_clone(Path(repo).expanduser()))
    return open_git(url, username=username, password=os.environ.get(GIT_TOKEN, ""), cache=_cache() / "git")


def _origin(clone: Clone) -> str:
    try:
        return clone.origin()
    except RefNotFoundError:
        return clone.database  # a bare repository on this machine, or one that was never pushed anywhere


def _cache() -> Path:
    named = os.environ.get("DEEPSEEK_OPS_CACHE")
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "deepseek-ops"
    return Path(named) if named else default
