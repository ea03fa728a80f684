"""Names of branches: which one is the main one, which texts are none, and which branch a bare commit is on."""

from __future__ import annotations

import re
from dataclasses import dataclass

from deepseek_ops.core.errors import PermanentError, RefNotFoundError
from deepseek_ops.core.ports import GitRemote
from deepseek_ops.core.records import GitRef
from deepseek_ops.pipeline.pushes import resolve

HEADS = "refs/heads/"
_USUAL = ("main", "master", "trunk")
_COMMIT = re.compile(r"[0-9a-f]{7,64}")
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]")


@dataclass(eq=False)
class BranchNameError(PermanentError):
    """A text that names no branch."""

    name: str
    problem: str

    def __str__(self) -> str:
        return f"{self.name!r} is no name of a branch: {self.problem}. Use one such as promote/first."


@dataclass(eq=False)
class NoDefaultBranchError(PermanentError):
    """A repository without a branch that could be meant."""

    repository: str
    branches: tuple[str, ...]

    def __str__(self) -> str:
        if not self.branches:
            return f"{self.repository} has no branch; push one."
        return (
            f"{self.repository} has no default branch (its HEAD names none that is there); name the one you mean: "
            f"{', '.join(self.branches[:10])}{', ...' if len(self.branches) > 10 else ''}."
        )


def default_branch(git: GitRemote) -> str:
    """Return the short name of the branch that a clone begins with; else the usual name, or the only branch there is.

    Raises NoDefaultBranchError.
    """
    if named := git.default_branch():
        return named.removeprefix(HEADS)
    branches = sorted(name.removeprefix(HEADS) for name in git.refs([f"{HEADS}*"]))
    for usual in _USUAL:
        if usual in branches:
            return usual
    if len(branches) == 1:
        return branches[0]
    raise NoDefaultBranchError(git.url, tuple(branches))


def ref_of(git: GitRemote, text: str) -> GitRef:
    """Return the ref a person means: a branch, a tag, ``branch@commit``, or a commit that a branch or a tag reaches.

    A commit may be shortened to seven digits or more; of several branches that have it the default one is named.
    Raises RefNotFoundError, ShortCommitError, InvalidRecordError.
    """
    try:
        return resolve(git, text)
    except RefNotFoundError:
        if not _COMMIT.fullmatch(text):
            raise
    tips = git.refs()
    main = git.default_branch()
    for name in sorted(tips, key=lambda name: (name != main, name)):
        found = {commit for commit in git.reachable([tips[name]]) if commit.startswith(text)}
        if len(found) == 1:
            return GitRef(repository=git.url, name=name, commit=found.pop())
    raise RefNotFoundError(git.url, f"commit {text}, or a branch or tag of that name,")


def branch_name(text: str) -> str:
    """Return the short name of a branch that may be made: ``refs/heads/x`` is ``x``. Raises BranchNameError.

    The rules are those of ``git check-ref-format --branch``.
    """
    name = text.removeprefix(HEADS)
    if problem := _problem(name):
        raise BranchNameError(text, problem)
    return name


def _problem(name: str) -> str:
    if name.startswith("refs/"):
        return "a full name of a branch begins with refs/heads/"
    if not name or name in ("@", "HEAD"):
        return "the name is empty" if not name else "Git means something else by it"
    if found := _FORBIDDEN.search(name):
        return f"it holds {found[0]!r}"
    for part in ("..", "@{", "//"):
        if part in name:
            return f"it holds {part!r}"
    if name.startswith(("-", "/")) or name.endswith(("/", ".")):
        return "it begins with '-' or '/', or ends with '/' or '.'"
    if any(part.startswith(".") or part.endswith(".lock") for part in name.split("/")):
        return "a part of it begins with '.' or ends with '.lock'"
    return ""
