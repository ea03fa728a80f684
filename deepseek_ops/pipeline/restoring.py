"""A release in a folder: the code of its tag, the weights its pointers name, and the data it was trained on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import JsonValue

from deepseek_ops.adapters.git import open_git
from deepseek_ops.adapters.git_lfs.config import STORE_FILE, STORE_KEY, StoreNotSetError
from deepseek_ops.adapters.git_lfs.restore import restore
from deepseek_ops.adapters.git_lfs.worktree_git import git, try_git
from deepseek_ops.core.errors import RefNotFoundError
from deepseek_ops.core.ports import GitRemote, ObjectStore
from deepseek_ops.data import DatasetRepository, read_pointer
from deepseek_ops.pipeline.repository_checks import DATASET_SUFFIX

OpenStore = Callable[[str], ObjectStore]


def restore_release(
    repository: str,
    ref: str,
    target: Path,
    *,
    store: str,
    patterns: Sequence[str] | None,
    datasets: bool,
    cache: Path | None,
    open_store: OpenStore,
) -> dict[str, JsonValue]:
    """Write a commit's code, weights and, if wanted, datasets to ``target`` and return what was restored.

    ``repository`` is a URL or a local clone; without ``store`` the commit's own ``.deepseek-ops.conf`` names it. Each
    dataset goes beside its pointer: ``data/corpus.dataset.yaml`` to ``data/corpus/``. All of it appears, or nothing.
    """
    source = _source(repository)
    fetched: dict[str, JsonValue] = {}

    def data(folder: Path) -> None:
        for pointer in sorted(folder.rglob(f"*{DATASET_SUFFIX}")) if datasets else ():
            place = pointer.relative_to(folder).as_posix()
            named = read_pointer(pointer.read_text(), file=place)
            into = pointer.with_name(pointer.name.removesuffix(DATASET_SUFFIX))
            DatasetRepository(open_store(named.store)).checkout(named.version, into)
            fetched[place] = named.version

    with tempfile.TemporaryDirectory(prefix="deepseek-ops-git-") as scratch:
        remote = open_git(source, cache=Path(scratch))
        at = remote.resolve(ref)
        named = store or committed_store_of(remote, at.commit)
        if not named and patterns is not None:
            raise StoreNotSetError(f"{source} at {ref}")
        opened = open_store(named) if named else open_store(str(Path(scratch) / "none"))
        done = restore(remote, opened, at, target, patterns=patterns, cache=cache, complete=data)
    weights: dict[str, JsonValue] = {
        key: list(value) if isinstance(value, tuple) else value for key, value in asdict(done.weights).items()
    }
    return {**done.ref.dump(), "target": str(target), "weights": weights, "datasets": fetched}


def committed_store_of(remote: GitRemote, commit: str) -> str:
    """Return the store that a commit names, or nothing."""
    try:
        text = remote.read_file(commit, STORE_FILE)
    except RefNotFoundError:
        return ""
    with tempfile.NamedTemporaryFile(prefix="deepseek-ops-") as file:
        file.write(text)
        file.flush()
        status, output, _ = try_git(Path(file.name).parent, "config", "--file", file.name, "--get", STORE_KEY)
    return output.decode().strip() if status == 0 else ""


def _source(repository: str) -> str:
    """Return the repository's address; a local clone's refs are read where they are."""
    if "://" in repository or not Path(repository).is_dir():
        return repository
    common = git(Path(repository), "rev-parse", "--git-common-dir").decode().rstrip("\n")
    return str((Path(repository) / common).resolve())
