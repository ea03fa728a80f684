"""A small local copy of what was asked about a repository. It can be deleted at any time.

Bare repositories per address: ``tips.git`` holds single commits (depth 1, no file contents: the size of a fetch
does not depend on the history), ``history.git`` holds all commits without trees, for questions about ancestry and for
building commits that can be pushed, ``deep.git`` all commits with their trees, for servers that give nothing but refs
and what they reach, ``small-<n>.git`` all refs with files below a size. Contents and trees are fetched
when they are read (partial clone). A server that offers no filters sends everything for the same requests; the answers
are the same.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from deepseek_ops.adapters.git.command import NETWORK_SECONDS, Git
from deepseek_ops.adapters.git.errors import explain
from deepseek_ops.adapters.git.refs import list_refs
from deepseek_ops.core.errors import RefNotFoundError

SHA256_LENGTH = 64
MAX_PACKS = 200
"""Fetches after which a copy is thrown away and begun again: cheaper than repacking a partial clone."""


class Mirror:
    """The local copy of one repository below ``cache``; every method is called inside ``locked``."""

    def __init__(self, git: Git, cache: Path) -> None:
        self._git = git
        key = hashlib.sha256(git.address.url.encode()).hexdigest()[:24]
        self._folder = cache / key

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the copy for this process; others wait. The lock goes away with the process that holds it."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self._folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def tips(self, commits: Sequence[str], *, depth: int = 1) -> Git:
        """Return a git that has the commits and their trees (``depth`` 2: with their parents')."""
        git = self._open("tips.git", "blob:none", commits)
        held = [] if depth > 1 else [commit for commit in commits if _has(git, commit)]
        # No ref here names what is held: without saying so, every fetch would bring all trees again.
        known = [f"--negotiation-tip={commit}" for commit in held]
        missing = [commit for commit in commits if commit not in held]
        self._fetch(git, missing, f"--depth={depth}", "--filter=blob:none", *known)
        return git

    def pair(self, old: str, new: str) -> Git:
        """Return a git that has both commits and their trees, also where the server gives only what its refs reach.

        Raises RefNotFoundError for ``old`` when neither the server nor the history of ``new`` has it.
        """
        try:
            return self.tips([old, new])
        except RefNotFoundError:
            git = self._open("deep.git", "blob:none", [new])
            self._fetch(git, [new] if not _has(git, new) else [], "--filter=blob:none")
            if not _has(git, old):
                raise RefNotFoundError(self._git.address.url, f"commit {old}") from None
            return git

    def history(self, commits: Sequence[str]) -> Git:
        """Return a git that has the commits with all their ancestors."""
        git = self._open("history.git", "tree:0", commits)
        self._fetch(git, [commit for commit in commits if not _has(git, commit)], "--filter=tree:0")
        return git

    def small(self, max_bytes: int) -> Git:
        """Return a git that has every ref, with all their history and the files below ``max_bytes``."""
        git = self._open(f"small-{max_bytes}.git", f"blob:limit={max_bytes}")
        self._git.require_reachable()
        options = ["--quiet", "--no-tags", "--no-write-fetch-head", "--prune", f"--filter=blob:limit={max_bytes}"]
        wanted = ["--end-of-options", "origin", "+refs/*:refs/mirror/*"]
        status, _, message = git.attempt("fetch", *options, *wanted, seconds=900)
        if status:
            raise explain(self._git.address.url, "fetch", message)
        return git

    def copy(self, name: str, filtered: str, commits: Sequence[str]) -> Git:
        """Return a git in the copy ``<name>.git``, with that partial-clone filter; the caller fetches ``commits``."""
        return self._open(f"{name}.git", filtered, commits)

    def tag_content(self, tag: str) -> str:
        """Return the text of an annotated tag object."""
        git = self._open("history.git", "tree:0", [tag])
        self._fetch(git, [tag], "--filter=tree:0")
        return git.run("cat-file", "tag", tag).decode(errors="replace")

    def contents(self, git: Git, commit: str) -> None:
        """Fetch the file contents of a commit that are not here yet, in one request."""
        listed = git.run("rev-list", "--objects", "--no-walk", "--missing=print", f"{commit}^{{tree}}", "--")
        missing = [line[1:] for line in listed.split(b"\n") if line.startswith(b"?")]
        if missing:
            self._git.require_reachable()
            options = ["--no-tags", "--no-write-fetch-head", "--quiet", "--filter=blob:none", "--stdin"]
            wanted = b"\n".join(missing) + b"\n"
            # Nothing to negotiate: what is wanted is missing here, and saying so saves the round trips.
            git.run("-c", "fetch.negotiationAlgorithm=noop", "fetch", *options, "origin", data=wanted, seconds=900)

    def _fetch(self, git: Git, commits: Sequence[str], *options: str) -> None:
        if not commits:
            return
        self._git.require_reachable()
        try:
            self._fetch_once(git, commits, *options)
        except RefNotFoundError:
            # A server may give a commit by the name of its ref only (a branch may have moved on in between).
            named = {ref.commit: ref.name for ref in list_refs(self._git, ["refs/heads/", "refs/tags/"]).values()}
            if not all(commit in named for commit in commits):
                raise
            self._fetch_once(git, [named[commit] for commit in commits], *options)
        lost = [commit for commit in commits if not _has(git, commit)]
        if lost:
            raise RefNotFoundError(self._git.address.url, f"commit {lost[0]}")

    def _fetch_once(self, git: Git, wanted: Sequence[str], *options: str) -> None:
        quiet = ["--quiet", "--no-tags", "--no-write-fetch-head", "--end-of-options"]
        status, _, message = git.attempt("fetch", *options, *quiet, "origin", *wanted, seconds=NETWORK_SECONDS)
        if status:
            raise explain(self._git.address.url, "fetch", message)

    def _open(self, name: str, filtered: str, commits: Sequence[str] = ()) -> Git:
        sha256 = any(len(commit) == SHA256_LENGTH for commit in commits)
        name = f"sha256-{name}" if sha256 else name
        place = self._folder / name
        packs = place / "objects" / "pack"
        if place.exists() and (not packs.exists() or len(list(packs.iterdir())) > 3 * MAX_PACKS):
            doomed = Path(tempfile.mkdtemp(dir=self._folder, prefix="old-"))
            place.rename(doomed / name)
        for leftover in (*self._folder.glob("old-*"), *self._folder.glob("new-*")):
            shutil.rmtree(leftover, ignore_errors=True)
        if not place.exists():
            fresh = Path(tempfile.mkdtemp(dir=self._folder, prefix="new-"))
            self._create(fresh / name, filtered, "sha256" if sha256 else "sha1")
            (fresh / name).rename(place)  # complete or absent: a killed process leaves no half repository
        return self._git.at(place)

    def _create(self, place: Path, filtered: str, hashed: str) -> None:
        form = f"--object-format={hashed}"
        self._git.run("init", "--bare", "--quiet", form, "--initial-branch=main", str(place))
        git = self._git.at(place)
        for key, value in (
            ("core.repositoryFormatVersion", "1"),
            ("extensions.partialClone", "origin"),
            ("remote.origin.url", self._git.address.url),
            ("remote.origin.promisor", "true"),
            ("remote.origin.partialCloneFilter", filtered),
        ):
            git.run("config", key, value)


def _has(git: Git, commit: str) -> bool:
    """Return whether the commit is here. ``--missing`` keeps git from fetching it to find out."""
    status, output, _ = git.attempt("rev-list", "--no-walk", "--missing=print", "--end-of-options", commit, "--")
    return status == 0 and not output.startswith(b"?")
