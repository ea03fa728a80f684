"""What only the git adapter can say, and how git's own messages are turned into the errors the port names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from deepseek_ops.core.errors import (
    DeepSeekOpsError,
    GitAccessError,
    GitUnreachableError,
    PermanentError,
    RefNotFoundError,
    StaleRefError,
    TransientError,
)


@dataclass(eq=False)
class RepositoryAddressError(PermanentError):
    """A repository address that is not one of the transports we speak."""

    url: str
    problem: str

    def __str__(self) -> str:
        return (
            f"repository address {self.url!r} {self.problem}. Use https://host/path, ssh://user@host/path, "
            "user@host:path or file:///folder."
        )


@dataclass(eq=False)
class GitBinaryMissingError(PermanentError):
    """The ``git`` program is not on the PATH."""

    def __str__(self) -> str:
        return (
            "the program git is not installed on this machine: install it (apt-get install git), version 2.31 or newer."
        )


@dataclass(eq=False)
class GitCommandError(TransientError):
    """git failed for a reason that is none of the named ones (a full disk, a killed process, a broken cache)."""

    repository: str
    command: str
    problem: str

    def __str__(self) -> str:
        return f"git {self.command} failed for {self.repository}: {self.problem}."


@dataclass(eq=False)
class TagConflictError(PermanentError):
    """A tag of this name exists and says something else. Tags never move."""

    repository: str
    tag: str
    existing: str

    def __str__(self) -> str:
        return (
            f"tag {self.tag} exists already in {self.repository} with other content (object {self.existing}); "
            "a released tag is never moved: choose another name or version."
        )


@dataclass(eq=False)
class UnsafeTreeError(PermanentError):
    """A commit holds a path or a link that would be written outside the folder it is checked out to."""

    repository: str
    commit: str
    path: str
    problem: str

    def __str__(self) -> str:
        return (
            f"commit {self.commit} of {self.repository} is refused: {self.path!r} {self.problem}. Remove it from Git."
        )


@dataclass(eq=False)
class UnsafePathError(PermanentError):
    """A path that no commit may hold was to be published."""

    path: str
    problem: str

    def __str__(self) -> str:
        return f"{self.path!r} cannot be published: it {self.problem}. Use a relative path such as runs/first.json."


@dataclass(eq=False)
class CheckoutTargetError(PermanentError):
    """The folder to check out to holds other files."""

    target: str
    path: str

    def __str__(self) -> str:
        return f"{self.target} is not empty and {self.path} is not as in the commit; choose a fresh folder."


@dataclass(eq=False)
class UnreadableFileError(GitAccessError):
    """A file of a commit that is there and is not one that can be read: a link, a folder, or too large."""

    path: str
    commit: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path} in commit {self.commit[:12]} of {self.repository} {self.problem}; {self.remedy}."


@dataclass(eq=False)
class LostRaceError(StaleRefError):
    """The server took another push first; which refs that moved is known when they are read again."""


_NOT_FOUND = re.compile(
    r"not our ref|couldn't find remote ref|unadvertised object|bad object|not a valid object name|no such remote ref"
    r"|remote error: upload-pack: not our ref",
    re.IGNORECASE,
)
_REFUSED = re.compile(
    r"authentication failed|returned error: 40[134]|invalid credentials|access denied|permission denied|not found"
    r"|host key verification failed|does not appear to be a git repository|could not read (username|password)"
    r"|dubious ownership|terminal prompts disabled|not a git repository|repository .* does not exist"
    r"|transport '[a-z]*' not allowed|remote: forbidden|error in libcrypto|invalid format",
    re.IGNORECASE,
)
_AWAY = re.compile(
    r"could not resolve|failed to connect|couldn't connect|connection (refused|timed out|reset|closed)|timed out"
    r"|network is unreachable|no route to host|returned error: (5\d\d|429)|early eof|rpc failed"
    r"|remote end hung up|unexpected disconnect|transfer closed|empty reply|recv failure|send failure|ssl|gnutls",
    re.IGNORECASE,
)
_OBJECT = re.compile(r"\b[0-9a-f]{40,64}\b")


def explain(repository: str, command: str, message: str) -> DeepSeekOpsError:
    """Return the error that git's ``message`` (stderr in the C locale) stands for."""
    text = problem_line(message)
    if _NOT_FOUND.search(message):
        named = _OBJECT.search(message)
        return RefNotFoundError(repository, f"commit {named.group()}" if named else "the ref or commit")
    # Away before refused: a proxy's "503 ... not found" and a reset in the middle of a log-in are worth another try.
    if _AWAY.search(message):
        return GitUnreachableError(repository, text)
    if _REFUSED.search(message):
        return GitAccessError(repository, text)
    return GitCommandError(repository, command, text)


def problem_line(message: str) -> str:
    """Return the one line of git's output that tells what is wrong, at most 300 characters."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    # ssh and the remote speak before git's own "Could not read from remote repository", which says nothing.
    useful = [line for line in lines if "Could not read from remote" not in line]
    told = [line for line in useful if line.startswith(("fatal:", "error:", "remote: fatal", "ssh:", "!"))]
    line = (told or useful or lines or ["no message"])[0]
    return line.removeprefix("fatal: ").removeprefix("error: ").rstrip(".")[:300]
