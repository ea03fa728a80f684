"""Where a commit is today, by what survives a rebase, a squash, a deleted branch and a renamed repository.

A commit id dies with the history it was made in. What it held lives on: its tree under another message, its patch on
another parent, its record in a tag, a note or a squashed message. They are asked in this order, from the surest to the
weakest, and every answer says by what it was found.

One local copy holds all commits of all refs without trees, so most answers cost one small fetch. Only a search by
patch, or in notes, needs contents: files up to 1 MiB come along then, larger ones when a patch touches them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from deepseek_ops.adapters.git.address import parse_address
from deepseek_ops.adapters.git.command import Credentials, Git
from deepseek_ops.adapters.git.errors import explain
from deepseek_ops.adapters.git.mirror import Mirror
from deepseek_ops.adapters.git.repository import GitRepository
from deepseek_ops.core.errors import DeepSeekOpsError, RefNotFoundError

NOTES = "refs/notes/deepseek-ops"
SEARCHED_COMMITS = 5000
"""Newest commits whose patches are compared; each costs a diff."""
SHOWN_REFS = 20
_SMALL_BYTES = 1 << 20
_BATCH = 200
_HERE = "refs/mirror/"
_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")

Evidence = Literal["commit", "tag", "tree", "patch-id", "notes", "message"]


@dataclass(frozen=True, slots=True)
class Sought:
    """What is known of a commit. Fields that are empty are not looked for."""

    commit: str
    tree: str = ""
    patch_id: str = ""
    lines: tuple[str, ...] = ()
    """Whole lines that its record has, such as ``Manifest: <digest>``; one of them is enough."""
    tags: tuple[str, ...] = ()
    """Tags that were made for it."""


@dataclass(frozen=True, slots=True)
class Trace:
    """A commit that holds what was sought."""

    commit: str
    by: Evidence
    tree: str
    author: str
    at: str
    """ISO 8601: the author's date."""
    subject: str
    refs: tuple[str, ...] = ()
    """Branches and tags that reach it, at most ``SHOWN_REFS``; empty: the server may forget it any day."""
    detail: str = ""
    """The tag or note it was found by."""


@dataclass(frozen=True, slots=True)
class Mention:
    """A text in the repository that holds a line which was looked for."""

    by: Evidence
    name: str
    """Tag, or commit that the note or the message belongs to."""
    commit: str
    text: str
    object_id: str = ""
    """Of the tag object."""


class _AllRefs(Mirror):
    """Adds a copy of every branch, tag and note of ours: commits alone, trees when they are read."""

    def commits(self) -> Git:
        git = self._open("commits.git", "tree:0")
        self._git.require_reachable()
        options = ["--quiet", "--no-tags", "--no-write-fetch-head", "--prune", "--filter=tree:0", "--end-of-options"]
        kinds = [f"+refs/{kind}/*:{_HERE}{kind}/*" for kind in ("heads", "tags", "notes")]
        status, _, message = git.attempt("fetch", *options, "origin", *kinds, seconds=900)
        if status:
            raise explain(self._git.address.url, "fetch", message)
        return git


class GitTracer:
    """Looks for commits in one repository. Every question is answered from what the server has now."""

    def __init__(self, git: Git, cache: Path) -> None:
        self.url = git.address.url
        self.repository = GitRepository(git, cache)
        self._mirror = _AllRefs(git, cache)

    def find(self, sought: Sought) -> Trace | None:
        """Return the commit, or the surest other one that holds what it held; None when nothing here does.

        Raises GitUnreachableError, GitAccessError.
        """
        with self._mirror.locked():
            git = self._mirror.commits()
            if found := self._by_commit(git, sought):
                return found
            for search in (self._by_tag, self._by_tree):
                if found := search(git, sought):
                    return found
            small = self._mirror.small(_SMALL_BYTES) if sought.patch_id or sought.lines else git
            return self._by_patch(small, sought) or self._by_text(git, small, sought)

    def mentions(self, line: str) -> list[Mention]:
        """Return the tags, messages and notes that hold ``line`` as a line of their own: tags first."""
        with self._mirror.locked():
            git = self._mirror.commits()
            found = list(_in_tags(git, (line,)))
            found += _in_messages(git, (line,))
            return found or list(_in_notes(self._mirror.small(_SMALL_BYTES), (line,)))

    def tag(self, name: str) -> Mention | None:
        """Return an annotated tag with its text, or None."""
        with self._mirror.locked():
            tags = list(_tags(self._mirror.commits()))
        return next((found for found in tags if found.name == name), None)

    def commit(self, commit: str) -> Mention | None:
        """Return a commit that a ref reaches, by its id or a beginning of seven digits or more, with its message."""
        with self._mirror.locked():
            git = self._mirror.commits()
            listed = git.run("rev-list", f"--glob={_HERE}heads/*", f"--glob={_HERE}tags/*").decode().split()
            ids = [one for one in listed if one.startswith(commit)]
            if len(ids) != 1 or len(commit) < 7:
                return None
            text = git.run("log", "-1", "--no-show-signature", "--format=%B", ids[0], "--").decode(errors="replace")
        return Mention("commit", ids[0], ids[0], text)

    def files(self, commit: str) -> dict[str, str]:
        """Return path -> object id of a commit's plain files. Raises RefNotFoundError."""
        if not _COMMIT.fullmatch(commit):
            raise RefNotFoundError(self.url, f"commit {commit!r}")
        with self._mirror.locked():
            git = self._mirror.tips([commit])
            listed = git.run("ls-tree", "-r", "-z", "--full-tree", "--end-of-options", commit)
        rows = (line.decode(errors="replace").partition("\t") for line in listed.split(b"\x00") if line)
        return {path: head.split(" ")[2] for head, _, path in rows if head.split(" ")[1] == "blob"}

    def read(self, commit: str, path: str, *, max_bytes: int) -> bytes:
        """Return a file of a commit; see ``GitRepository.read_file``."""
        return self.repository.read_file(commit, path, max_bytes=max_bytes)

    def _by_commit(self, git: Git, sought: Sought) -> Trace | None:
        if not _COMMIT.fullmatch(sought.commit):
            return None
        reached = _refs_with(git, sought.commit)
        if reached:
            return _trace(git, sought.commit, "commit", reached)
        try:
            tips = self._mirror.tips([sought.commit], depth=2)  # asks the server: a copy of ours is no proof
        except DeepSeekOpsError:
            return None
        return _trace(tips, sought.commit, "commit", ())

    def _by_tag(self, git: Git, sought: Sought) -> Trace | None:
        for tag in _tags(git):
            if tag.name in sought.tags or _holds(tag.text, sought.lines):
                return replace(_trained(git, tag.commit, "tag"), detail=tag.name)
        return None

    def _by_tree(self, git: Git, sought: Sought) -> Trace | None:
        if not sought.tree:
            return None
        for line in git.run("log", *_everywhere(), "--no-show-signature", "--format=%H %T", "--").decode().splitlines():
            commit, _, tree = line.partition(" ")
            if tree == sought.tree:
                return _trace(git, commit, "tree", _refs_with(git, commit))
        return None

    def _by_patch(self, git: Git, sought: Sought) -> Trace | None:
        if not sought.patch_id:
            return None
        options = ["--no-merges", f"--max-count={SEARCHED_COMMITS}", "--glob=refs/mirror/heads/*"]
        commits = git.run("rev-list", *options, "--glob=refs/mirror/tags/*").decode().split()
        shape = ["--stdin", "--root", "-p", "--no-renames", "--no-ext-diff", "--no-textconv"]
        for start in range(0, len(commits), _BATCH):
            asked = "\n".join(commits[start : start + _BATCH]) + "\n"
            patches = git.run("diff-tree", *shape, data=asked.encode(), seconds=600)
            for line in git.run("patch-id", "--stable", data=patches).decode().splitlines():
                patch_id, _, commit = line.partition(" ")
                if patch_id == sought.patch_id:
                    return _trace(git, commit, "patch-id", _refs_with(git, commit))
        return None

    def _by_text(self, git: Git, small: Git, sought: Sought) -> Trace | None:
        if not sought.lines:
            return None
        for mention in _in_notes(small, sought.lines):
            if reached := _refs_with(git, mention.commit):
                return replace(_trace(git, mention.commit, "notes", reached), detail=NOTES)
        for mention in _in_messages(git, sought.lines):
            return _trained(git, mention.commit, "message")
        return None


def open_tracer(
    url: str, *, username: str = "", password: str = "", ssh_key: str = "", known_hosts: str = "", cache: Path
) -> GitTracer:
    """Return the tracer of a repository; arguments and errors are those of ``open_git``."""
    return GitTracer(Git(parse_address(url), Credentials(username, password, ssh_key, known_hosts)), cache)


def tracer_of(repository: GitRepository, cache: Path) -> GitTracer:
    """Return the tracer of an opened repository, with its login."""
    return GitTracer(repository._git, cache)


def _everywhere() -> list[str]:
    return [f"--glob={_HERE}heads/*", f"--glob={_HERE}tags/*"]


def _refs_with(git: Git, commit: str) -> tuple[str, ...]:
    """Return the branches and tags that reach a commit; none when it is not here at all."""
    options = [f"--contains={commit}", f"--count={SHOWN_REFS}", "--format=%(refname)"]
    status, output, _ = git.attempt("for-each-ref", *options, f"{_HERE}heads", f"{_HERE}tags")
    if status:
        return ()
    return tuple(f"refs/{name.removeprefix(_HERE)}" for name in output.decode(errors="replace").split())


def _trace(git: Git, commit: str, by: Evidence, refs: Sequence[str]) -> Trace:
    shown = git.run("log", "-1", "--no-show-signature", "--format=%T%x00%an <%ae>%x00%aI%x00%s", commit, "--")
    tree, author, at, subject = shown.decode(errors="replace").rstrip("\n").split("\x00", 3)
    return Trace(commit, by, tree, author, at, subject, tuple(refs))


def _trained(git: Git, commit: str, by: Evidence) -> Trace:
    """Return the commit that was trained: the one below a commit of ours, which only adds the result."""
    found = _trace(git, commit, by, ())
    parents = git.run("log", "-1", "--no-show-signature", "--format=%P", commit, "--").decode().split()
    chosen = parents[0] if found.subject.startswith("Train ") and len(parents) == 1 else commit
    return _trace(git, chosen, by, _refs_with(git, chosen))


def _tags(git: Git) -> Iterator[Mention]:
    """Yield the annotated tags of commits."""
    shape = "%(refname)%00%(*objecttype)%00%(*objectname)%00%(objectname)%00%(contents)%00"
    fields = git.run("for-each-ref", f"--format={shape}", f"{_HERE}tags").decode(errors="replace").split("\x00")
    for at in range(0, len(fields) - 4, 5):
        name, kind, commit, tag, text = fields[at : at + 5]
        if kind == "commit":
            yield Mention("tag", name.strip().removeprefix(f"{_HERE}tags/"), commit, text, tag)


def _holds(text: str, lines: Sequence[str]) -> bool:
    return any(line in lines for line in map(str.strip, text.splitlines()))


def _in_tags(git: Git, lines: Sequence[str]) -> Iterator[Mention]:
    return (tag for tag in _tags(git) if _holds(tag.text, lines))


def _in_messages(git: Git, lines: Sequence[str]) -> Iterator[Mention]:
    wanted = [f"--grep={line}" for line in lines]
    options = ["--no-show-signature", "--fixed-strings", *wanted, "--format=%H%x00%B%x00"]
    fields = git.run("log", *_everywhere(), *options, "--").decode(errors="replace").split("\x00")
    for at in range(0, len(fields) - 1, 2):
        commit, text = fields[at].strip(), fields[at + 1]
        if _holds(text, lines):
            yield Mention("message", commit, commit, text)


def _in_notes(git: Git, lines: Sequence[str]) -> Iterator[Mention]:
    """Yield our notes that hold a line. A note's path is the id of its commit, cut into folders."""
    status, listed, _ = git.attempt("ls-tree", "-r", "-z", f"{_HERE}{NOTES.removeprefix('refs/')}")
    for line in listed.split(b"\x00") if status == 0 else ():
        head, _, path = line.decode(errors="replace").partition("\t")
        commit = path.replace("/", "")
        if not _COMMIT.fullmatch(commit):
            continue
        text = git.run("cat-file", "blob", head.split(" ")[2]).decode(errors="replace")
        if _holds(text, lines):
            yield Mention("notes", commit, commit, text)
