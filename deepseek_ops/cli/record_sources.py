"""Where the commands that read records find the repository: a clone as it lies there, or a URL."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import typer

from deepseek_ops.adapters.git import Clone, GitRepository, open_clone, open_git

GIT_TOKEN = "DEEPSEEK_OPS_GIT_TOKEN"  # noqa: S105  (the name of a variable)
Repo = Annotated[str, typer.Option("--repo", help=f"A clone, or a URL (token in ${GIT_TOKEN}).")]

_URL = re.compile(r"^(?:[a-z][a-z0-9+.-]*://|[^/@\s]+@[^/:\s]+:)")


def opened(repo: str) -> Clone | GitRepository:
    """Return the clone at a path, or the repository at a URL."""
    return remote(repo) if _URL.match(repo) else open_clone(Path(repo).expanduser())


def remote(repo: str) -> GitRepository:
    """Return the repository at a URL; for a clone, the one that it calls ``origin``."""
    url = repo if _URL.match(repo) else open_clone(Path(repo).expanduser()).origin()
    return open_git(url, password=os.environ.get(GIT_TOKEN, ""), cache=_cache() / "git")


def _cache() -> Path:
    named = os.environ.get("DEEPSEEK_OPS_CACHE")
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "deepseek-ops"
    return Path(named) if named else default
