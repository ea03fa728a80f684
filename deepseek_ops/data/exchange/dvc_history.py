"""What a Git repository says about the history of one ``.dvc`` file, read with Git's own plumbing."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from deepseek_ops.core.errors import PermanentError
from deepseek_ops.data.exchange.dvc_import import DvcRevision

_FORMAT = "%H%x00%an%x00%aI%x00%s"
GIT_SECONDS = 300


@dataclass(eq=False)
class NoGitHistoryError(PermanentError):
    """A .dvc file that no commit has, or that lies in no Git repository."""

    path: str
    problem: str

    def __str__(self) -> str:
        return f"{self.path} has no history in Git: {self.problem}. Commit it, or import without --history."


def revisions_of(path: Path) -> list[DvcRevision]:
    """Return the states of a .dvc file along the first parents of HEAD, oldest first; equal neighbours are one.

    Raises NoGitHistoryError.
    """
    folder, name = path.resolve().parent, path.name
    # --first-parent: a branch that was merged counts as the merge. A deletion is no state.
    wanted = ["--first-parent", "-m", "--diff-filter=AMRT", f"--format={_FORMAT}", "--reverse"]
    listed = _git(folder, path, ["log", *wanted, "--", name])
    revisions: list[DvcRevision] = []
    for line in listed.splitlines():
        commit, author, at, subject = line.split("\0", 3)
        text = _git(folder, path, ["cat-file", "blob", f"{commit}:./{name}"])
        if not revisions or revisions[-1].text != text:
            revisions.append(DvcRevision(commit, author, at, subject, text))
    if not revisions:
        raise NoGitHistoryError(str(path), "no commit of this branch has it")
    return revisions


def _git(folder: Path, path: Path, arguments: list[str]) -> str:
    command = ["git", "-C", str(folder), "--no-pager", "-c", "core.quotePath=false", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=GIT_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoGitHistoryError(str(path), f"git does not run ({error})") from None
    if done.returncode:
        raise NoGitHistoryError(str(path), done.stderr.decode(errors="replace").strip().splitlines()[-1:][0])
    return done.stdout.decode(errors="replace")
