"""A commit as it was: its code and its weights together, in a folder of their own."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepseek_ops.adapters.git_lfs.fetching import FetchReport, fetch_weights
from deepseek_ops.core.errors import LocalDiskError, PermanentError
from deepseek_ops.core.ports import GitRemote, ObjectStore
from deepseek_ops.core.records import GitRef


@dataclass(eq=False)
class RestoreTargetError(PermanentError):
    """The folder to restore to holds something."""

    target: str

    def __str__(self) -> str:
        return f"{self.target} is not empty; choose a new folder: nothing of yours is overwritten."


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored."""

    ref: GitRef
    weights: FetchReport


def restore(
    git: GitRemote,
    store: ObjectStore,
    ref: GitRef,
    target: Path,
    *,
    patterns: Sequence[str] | None = (),
    cache: Path | None = None,
    complete: Callable[[Path], None] = lambda _folder: None,
) -> Restored:
    """Write code and weights of a commit to ``target``: all of them or, after a failure, none.

    Args:
        git: The model repository.
        store: Where its LFS objects are.
        ref: The resolved branch or tag: a name that moves meanwhile changes nothing.
        target: A folder that is not there, or empty.
        patterns: Which weights; all when empty, none when None.
        cache: Shared folder of objects.
        complete: Called with the folder before it gets its name, to add what else belongs to the commit.

    Raises RefNotFoundError, RestoreTargetError, WeightNotPushedError and what ``fetch_weights`` raises.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RestoreTargetError(str(target))
    staged = target.parent / f".{target.name}.{secrets.token_hex(4)}"
    try:
        git.checkout(ref.commit, staged)
        chosen = () if patterns is None else patterns
        weights = FetchReport((), (), 0, 0) if patterns is None else fetch_weights(store, staged, chosen, cache=cache)
        complete(staged)
        _place(staged, target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return Restored(ref, weights)


def _place(staged: Path, target: Path) -> None:
    try:
        os.replace(staged, target)  # noqa: PTH105  (replaces an empty folder, which Path.rename need not)
    except OSError as error:
        raise LocalDiskError(str(target), error.strerror or str(error)) from error
