"""The pairing of code and data: a run refuses data that is not what its commit names.

Two people with the same commit and different data get different results and no hint why. So whoever materialises data
for a run asks here first; the error names both versions, and the ``git`` command that shows where they parted.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.records import DatasetVersion, Digest
from deepseek_ops.data.blobs import hash_file
from deepseek_ops.data.checkout import VerifyReport
from deepseek_ops.data.folders import scan_folder
from deepseek_ops.data.pointer import DatasetPointer, pointer_path
from deepseek_ops.data.worktree import Worktree

SHOWN = 5


@dataclass(eq=False)
class DatasetMismatchError(PermanentError):
    """The data is not the version that the commit names."""

    dataset: str
    named: Digest
    actual: str
    file: str
    commit: str = ""
    made_for: str = ""
    """Commit that named the data that is here, where it is known."""

    def __str__(self) -> str:
        who = f"commit {self.commit}" if self.commit else "its commit"
        if self.made_for and self.commit:
            command = f"git diff {self.made_for} {self.commit} -- {self.file}"
        else:
            command = f"git log -p -1 {self.commit + ' ' if self.commit else ''}-- {self.file}"
        return (
            f"the data here is version {self.actual or '(none)'} of {self.dataset}, but {who} names {self.named} in "
            f"{self.file}. `{command}` shows the change; `deepseek-ops data checkout TARGET --pointer {self.file}` "
            "brings the version that is named, and a commit of the pointer names the one that is here."
        )


@dataclass(eq=False)
class DatasetChangedError(PermanentError):
    """A folder began as the right version and was changed since."""

    folder: str
    version: str
    paths: tuple[str, ...]

    def __str__(self) -> str:
        shown = ", ".join(self.paths[:SHOWN])
        more = f" and {len(self.paths) - SHOWN} more" if len(self.paths) > SHOWN else ""
        return (
            f"{self.folder} is no longer version {self.version}: {shown}{more} differ. Commit them and the pointer, or "
            "bring the version back with `deepseek-ops data checkout --force`."
        )


def require_pointed(
    data: Path | DatasetVersion | Digest,
    pointer: DatasetPointer,
    *,
    commit: str = "",
    file: str = "",
    made_for: str = "",
) -> Digest:
    """Return the version of a folder, a record or an id if it is the one that the pointer names.

    ``commit`` is the one the pointer was read from, ``made_for`` the one the data was made for. A folder is compared
    with what it was made from; files whose times have changed are read. Raises DatasetMismatchError,
    DatasetChangedError, NotAWorktreeError.
    """
    file = file or pointer_path(pointer.name)
    name = pointer.name
    if isinstance(data, Path):
        record = Worktree(data).record()
        name, actual = record.dataset, record.version or ""
    elif isinstance(data, DatasetVersion):
        name, actual = data.name, data.version
    else:
        actual = data
    if actual != pointer.version or name != pointer.name:
        raise DatasetMismatchError(name, pointer.version, actual, file, commit, made_for)
    if isinstance(data, Path):
        require_unchanged(data)
    return actual


def require_version(folder: Path, dataset: DatasetVersion) -> None:
    """Return if a folder is this version, unchanged. Raises as ``require_pointed`` does."""
    pointer = DatasetPointer.of(dataset, "")
    require_pointed(folder, pointer)


def require_unchanged(folder: Path) -> None:
    """Return if a folder is what it was made from. Raises DatasetChangedError, NotAWorktreeError."""
    worktree = Worktree(folder)
    record = worktree.record()
    if worktree.interrupted:
        raise DatasetChangedError(str(folder), record.version or "", ("an interrupted switch",))
    with worktree.locked():
        status = worktree.status()
    if status:
        raise DatasetChangedError(str(folder), record.version or "", tuple(status.paths))


def verify_folder(folder: Path, *, fraction: float = 1.0) -> VerifyReport:
    """Read every file of a materialised folder, or a random fraction, and say what is not as its version says.

    Unlike a status it believes no times. Raises NotAWorktreeError.
    """
    worktree = Worktree(folder)
    worktree.record()
    index, files = worktree.index(), {file.name: file for file in scan_folder(worktree.folder)}
    problems = [f"{path} is missing" for path in sorted(index.keys() - files.keys())]
    problems += [f"{path} is not part of the version" for path in sorted(files.keys() - index.keys())]
    size = 0
    for path in sorted(index.keys() & files.keys()):
        entry = index[path].entry
        if fraction < 1 and random.random() >= fraction:  # noqa: S311
            continue
        size += files[path].size
        actual = hash_file(worktree.folder / path)[0]
        if actual != entry.digest.hex():
            problems.append(f"{path} has digest {actual}, expected {entry.digest.hex()}")
    return VerifyReport(len(index), size, tuple(problems))
