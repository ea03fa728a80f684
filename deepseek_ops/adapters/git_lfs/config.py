"""What a clone says about its store, and the settings that make ``git lfs`` use the transfer agent.

git-lfs (3.6.1, tried) honours only lfs.url, pushurl, fetchinclude, fetchexclude, locksverify, gitprotocol,
allowincompletepush and skipdownloaderrors in a committed ``.lfsconfig``; it ignores every other key there, with a
warning on each command, and takes ``s3://`` in lfs.url for the name of an ssh host. So the store's address is committed
in a file of our own, ``.deepseek-ops.conf`` (the syntax of git config), and the agent is set in the clone's own config:
a repository must not choose the programs that run on the machines of those who clone it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deepseek_ops.adapters.git_lfs.worktree_git import git, try_git
from deepseek_ops.core.errors import PermanentError

AGENT = "deepseek-ops"
STORE_KEY = "deepseek-ops.store"
REPOSITORY_KEY = "deepseek-ops.repository"
CACHE_KEY = "deepseek-ops.cache"
STORE_FILE = ".deepseek-ops.conf"
STORE_VARIABLE = "DEEPSEEK_OPS_STORE"
AGENT_MODULE = "deepseek_ops.cli.lfs_agent"

_NOT_A_NAME = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(eq=False)
class StoreNotSetError(PermanentError):
    """A clone does not say where its LFS objects are."""

    folder: str

    def __str__(self) -> str:
        return (
            f"{self.folder} names no object store: run `deepseek-ops init --store s3://bucket/prefix`, or "
            f"`git config {STORE_KEY} s3://bucket/prefix`, or set {STORE_VARIABLE}."
        )


@dataclass(frozen=True, slots=True)
class CloneSettings:
    """What the agent needs to know about the clone it was started in."""

    folder: Path
    store: str
    """URI without credentials; those come from the AWS_* variables."""
    lfs_storage: Path
    """Where git-lfs keeps its objects: ``.git/lfs`` unless ``lfs.storage`` says otherwise."""
    config: Mapping[str, str]
    """git's whole configuration here, the last value of each key."""

    def repository(self, remote: str) -> str:
        """Return the name under which this repository's roots are noted in the store."""
        return self.config.get(REPOSITORY_KEY) or repository_name(self.config.get(f"remote.{remote}.url", remote))


def clone_settings(folder: Path, environment: Mapping[str, str]) -> CloneSettings:
    """Return the settings of the clone that ``folder`` is in. Raises StoreNotSetError, WorkTreeGitError."""
    config = _listed(git(folder, "config", "--list", "--null"))
    store = environment.get(STORE_VARIABLE) or config.get(STORE_KEY) or committed_store(folder)
    if not store:
        raise StoreNotSetError(str(folder))
    return CloneSettings(folder, store, lfs_storage(folder, config), config)


def store_of(folder: Path, given: str = "") -> str:
    """Return the store's URI: the one given, else what the environment, the clone's config or its commit says.

    Raises StoreNotSetError.
    """
    if given or (given := os.environ.get(STORE_VARIABLE, "")):
        return given
    status, output, _ = try_git(folder, "config", "--get", STORE_KEY)
    store = output.decode().strip() if status == 0 else committed_store(folder)
    if not store:
        raise StoreNotSetError(str(folder))
    return store


def committed_store(folder: Path) -> str:
    """Return what the committed file says, or nothing.

    As git-lfs does with ``.lfsconfig``, the index and HEAD are asked when the file is not there: in the middle of a
    clone, the weights may be checked out before it.
    """
    status, output, _ = try_git(folder, "rev-parse", "--show-toplevel")
    file = Path(output.decode().rstrip("\n")) / STORE_FILE
    if status == 0 and file.is_file():
        sources = [["--file", str(file)]]
    else:
        sources = [["--blob", f":{STORE_FILE}"], ["--blob", f"HEAD:{STORE_FILE}"]]
    for source in sources:
        status, output, _ = try_git(folder, "config", *source, "--get", STORE_KEY)
        if status == 0:
            return output.decode().strip()
    return ""


def lfs_storage(folder: Path, config: Mapping[str, str] | None = None) -> Path:
    """Return the folder of git-lfs's own objects; every work tree of a clone shares it."""
    if config is None:
        config = _listed(git(folder, "config", "--list", "--null"))
    common = Path(git(folder, "rev-parse", "--git-common-dir").decode().rstrip("\n"))
    return (folder / common).resolve() / Path(config.get("lfs.storage", "lfs")).expanduser()


def repository_name(url: str) -> str:
    """Return the name of a remote's repository: the last two parts of its URL, such as ``team/model``.

    The LFS server calls the same repository by the same name, so what one way in has stored, the other one may read.
    """
    path = re.sub(r"^[a-z+]+://[^/]*|^[^/]*@?[^/:]*:", "", url).split("?")[0].rstrip("/").removesuffix(".git")
    parts = [_NOT_A_NAME.sub("-", part).strip("-._")[:100] for part in path.split("/")]
    return "/".join([part for part in parts if part][-2:]) or "local"


def agent_settings() -> dict[str, str]:
    """Return the settings that define the agent; harmless until something selects it.

    ``-P`` keeps the work tree out of the module path: a file ``json.py`` in a repository must not run in the agent.
    """
    return {
        f"lfs.customtransfer.{AGENT}.path": sys.executable,
        f"lfs.customtransfer.{AGENT}.args": f"-P -m {AGENT_MODULE}",
        f"lfs.customtransfer.{AGENT}.concurrent": "true",
    }


def install_agent(folder: Path, *, everywhere: bool = False) -> list[str]:
    """Write the agent's settings into the clone's config and return what changed, as ``key = value``.

    ``everywhere`` writes the definition alone into the user's own config, so that
    ``git clone -c lfs.standalonetransferagent=deepseek-ops URL`` works; other repositories keep their LFS servers.
    """
    scope = "--global" if everywhere else "--local"
    wanted = agent_settings()
    if not everywhere:
        wanted["lfs.standalonetransferagent"] = AGENT
    return [change for key, value in wanted.items() if (change := set_config(folder, key, value, scope=scope))]


def set_config(folder: Path, key: str, value: str, *, scope: str = "--local") -> str:
    """Make ``key`` have exactly this value and return ``key = value`` if that was a change, else nothing."""
    status, output, _ = try_git(folder, "config", scope, "--null", "--get-all", key)
    if status == 0 and output == value.encode() + b"\x00":
        return ""
    git(folder, "config", scope, "--replace-all", key, value)
    return f"{key} = {value}"


def _listed(output: bytes) -> dict[str, str]:
    pairs = (item.partition(b"\n") for item in output.split(b"\x00") if item)
    return {key.decode(errors="replace"): value.decode(errors="replace") for key, _, value in pairs}
