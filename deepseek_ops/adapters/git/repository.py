"""``GitRemote`` over the git program and, for refs over http(s), the Git protocol itself."""

from __future__ import annotations

import os
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from deepseek_ops.adapters.git.address import parse_address
from deepseek_ops.adapters.git.command import Credentials, Git
from deepseek_ops.adapters.git.errors import LostRaceError, UnreadableFileError
from deepseek_ops.adapters.git.export import export_tree
from deepseek_ops.adapters.git.journal import fetched, record_texts
from deepseek_ops.adapters.git.merging import build_merge, fetched_for_merge, merge_commits
from deepseek_ops.adapters.git.mirror import Mirror
from deepseek_ops.adapters.git.notes import Edit, fetch_notes, read_notes
from deepseek_ops.adapters.git.publish import annotate, publish, publish_merge
from deepseek_ops.adapters.git.refs import RefsSeen, RemoteRef, list_refs, list_refs_async, matches, prefixes_of
from deepseek_ops.adapters.git.small_texts import small_texts
from deepseek_ops.core.errors import RefNotFoundError
from deepseek_ops.core.ports import NOTES_REF, MergedTree, NewCommit, NewNote, NewTag, RecordText
from deepseek_ops.core.records import GitRef

T = TypeVar("T")

_COMMIT = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
RACES = 40
"""Pushes that may be lost to others before it is an error."""
_KINDS = {"120000": "a symbolic link", "040000": "a folder", "160000": "a submodule"}
"""Mode of an entry of a tree -> what it is, where it is no file."""
_ALL = ("refs/heads/*", "refs/tags/*")


class GitRepository:
    """One model repository on any Git host. Safe to use from several processes and threads over one ``cache``."""

    def __init__(self, git: Git, cache: Path) -> None:
        self.url = git.address.url
        self._git = git
        self._mirror = Mirror(git, cache)

    def __repr__(self) -> str:
        return f"GitRepository({self.url!r})"

    def refs(self, patterns: Sequence[str] = _ALL) -> dict[str, str]:
        """Return full ref name -> commit id; ``*`` in a pattern crosses ``/``."""
        return _chosen(list_refs(self._git, prefixes_of(patterns)), patterns)

    async def refs_async(self, patterns: Sequence[str] = _ALL) -> dict[str, str]:
        """Return what ``refs`` returns without blocking the event loop (a thread where it is no HTTP request)."""
        return _chosen(await list_refs_async(self._git, prefixes_of(patterns)), patterns)

    async def look_async(self, patterns: Sequence[str] = _ALL) -> RefsSeen:
        """Return refs and default branch, with one request and without blocking the event loop."""
        found = await list_refs_async(self._git, ["HEAD", *prefixes_of(patterns)])
        return RefsSeen(_chosen(found, patterns), found["HEAD"].symref or None if "HEAD" in found else None)

    def prefetch(self, commits: Sequence[str]) -> None:
        """Fetch commits with their trees in one request: what is asked about them afterwards needs none."""
        with self._mirror.locked():
            self._mirror.tips([self._checked(commit) for commit in commits])

    def default_branch(self) -> str | None:
        """Return the full name of the branch HEAD points to, or None in an empty repository."""
        head = list_refs(self._git, ["HEAD"]).get("HEAD")
        return head.symref or None if head else None

    def resolve(self, ref: str) -> GitRef:
        """Return a branch, a tag, a full name, ``HEAD`` or the tip commit of a ref; a branch goes before a tag."""
        found = list_refs(self._git, ["HEAD", "refs/heads/", "refs/tags/"])
        for name in (
            found["HEAD"].symref if ref == "HEAD" and "HEAD" in found else ref,
            f"refs/heads/{ref}",
            f"refs/tags/{ref}",
        ):
            if name.startswith(("refs/heads/", "refs/tags/")) and name in found:
                return GitRef(repository=self.url, name=name, commit=found[name].commit)
        if _COMMIT.fullmatch(ref):
            for name, there in sorted(found.items()):
                if there.commit == ref and name.startswith(("refs/heads/", "refs/tags/")):
                    return GitRef(repository=self.url, name=name, commit=ref)
        raise RefNotFoundError(self.url, ref)

    def is_commit(self, object_id: str) -> bool:
        """Return whether an object is a commit: a tag may be on a file or a folder, too."""
        with self._mirror.locked():
            git = self._mirror.tips([self._checked(object_id)])
            return git.run("cat-file", "-t", "--end-of-options", object_id).strip() == b"commit"

    def describe(self, commit: str) -> dict[str, str]:
        """Return ``tree``, ``patch_id`` ("" for a merge), ``author`` and ``subject`` of a commit."""
        with self._mirror.locked():
            git = self._mirror.tips([self._checked(commit)], depth=2)
            shown = git.run("log", "-1", "--no-show-signature", "--format=%T%x00%P%x00%an <%ae>%x00%s", commit, "--")
            tree, parents, author, subject = shown.decode(errors="replace").rstrip("\n").split("\x00", 3)
            patch_id = "" if " " in parents else self._patch_id(git, commit)
        return {"tree": tree, "patch_id": patch_id, "author": author, "subject": subject}

    def read_file(self, commit: str, path: str, *, max_bytes: int = 1_000_000) -> bytes:
        """Return one file of a commit. Raises RefNotFoundError, and GitAccessError for a larger or a special file."""
        if path.startswith("/") or ".." in path.split("/") or "\x00" in path:
            raise RefNotFoundError(self.url, f"file {path!r}")
        with self._mirror.locked():
            git = self._mirror.tips([self._checked(commit)])
            listed = git.run("ls-tree", "-z", "--full-tree", "--end-of-options", commit, path)
            line = next((line for line in listed.split(b"\x00") if line.endswith(b"\t" + os.fsencode(path))), b"")
            if not line:
                raise RefNotFoundError(self.url, f"file {path} in commit {commit[:12]}")
            mode, kind, oid = line.partition(b"\t")[0].decode().split(" ")
            if kind != "blob" or mode == "120000":
                found = _KINDS.get(mode, "something else")
                problem, remedy = f"is not a plain file but {found}", "commit the file itself in its place"
                raise UnreadableFileError(self.url, problem, path, commit, remedy)
            size = int(git.run("cat-file", "-s", oid))
            if size > max_bytes:
                problem, remedy = f"has {size} bytes, more than the {max_bytes} that are read", "commit a smaller one"
                raise UnreadableFileError(self.url, problem, path, commit, remedy)
            return git.run("cat-file", "blob", oid)

    def changed_paths(self, old: str | None, new: str) -> list[str]:
        """Return the paths that differ, a rename as both of its names; all paths of ``new`` when ``old`` is None."""
        with self._mirror.locked():
            if old is None:
                git = self._mirror.tips([self._checked(new)])
                listing = git.run("ls-tree", "-r", "-z", "--name-only", "--full-tree", "--end-of-options", new)
            else:
                git = self._mirror.pair(self._checked(old), self._checked(new))
                # Without --no-renames git would fetch contents to look for them.
                options = ["-r", "-z", "--name-only", "--no-renames", "--no-ext-diff"]
                listing = git.run("diff-tree", *options, "--end-of-options", old, new)
        return [path.decode(errors="replace") for path in listing.split(b"\x00") if path]

    def merge_base(self, one: str, other: str) -> str | None:
        """Return the best common ancestor of two commits, or None when they share no history."""
        with self._mirror.locked():
            git = self._mirror.history([self._checked(one), self._checked(other)])
            status, output, _ = git.attempt("merge-base", one, other)
        return output.decode().strip() if status == 0 else None

    def checkout(self, commit: str, target: Path) -> None:
        """Write the commit's files below ``target``: new, empty, or holding exactly them already."""
        with self._mirror.locked():
            git = self._mirror.tips([self._checked(commit)])
            self._mirror.contents(git, commit)
            export_tree(git, commit, target)

    def small_texts(self, *, max_bytes: int = 4096, history: bool = True) -> Iterator[bytes]:
        """Yield what all refs reach: commits, annotated tags, and files below ``max_bytes``; see the port."""
        with self._mirror.locked():
            yield from small_texts(self._mirror.small(max_bytes), max_bytes=max_bytes, history=history)

    def publish(
        self,
        *,
        commit: NewCommit | None = None,
        tags: Sequence[NewTag] = (),
        delete: Sequence[str] = (),
        notes: Sequence[NewNote] = (),
        before: Callable[[Mapping[str, str]], None] | None = None,
    ) -> dict[str, str]:
        """Push a commit, tags, notes and deletions (full ref names) in one atomic push with leases; see ``publish.py``.

        Notes are everybody's: where somebody else's were faster, ours are put on top of them and pushed again.
        """

        def push() -> dict[str, str]:
            with self._mirror.locked():
                return publish(
                    self._git, self._mirror, commit=commit, tags=tags, delete=delete, notes=notes, before=before
                )

        return _insisting(push)

    def notes(self, ref: str = NOTES_REF) -> dict[str, str]:
        """Return commit -> note of a notes ref."""
        with self._mirror.locked():
            there = list_refs(self._git, [ref]).get(ref)
            if there is None:
                return {}
            work = self._mirror.copy("history", "tree:0", [there.oid])
            fetch_notes(work, there.oid)
            return read_notes(work, there.oid)

    def annotate(self, commit: str, edit: Edit, *, ref: str = NOTES_REF) -> str:
        """Push the note of a commit as ``edit`` makes it from what is there, and return the notes commit.

        ``edit`` may be called several times: once more each time that somebody else was faster.
        """

        def push() -> str:
            with self._mirror.locked():
                return annotate(self._git, self._mirror, ref, [(self._checked(commit), edit)])

        return _insisting(push)

    def record_texts(self, refs: Sequence[str] = ()) -> Iterator[RecordText]:
        """Yield what may hold records; see the port."""
        with self._mirror.locked():
            work = fetched(self._git, self._mirror)
            yield from record_texts(work, list(refs) or ["--branches", "--tags"])

    def reachable(self, commits: Sequence[str], *, without: Sequence[str] = ()) -> list[str]:
        """Return the ids of all commits that ``commits`` reach and ``without`` do not, newest first."""
        chosen = [self._checked(commit) for commit in commits]
        left_out = [self._checked(commit) for commit in without]
        with self._mirror.locked():
            work = self._mirror.history([*chosen, *left_out])
            return (
                work.run("rev-list", *chosen, *(f"^{commit}" for commit in left_out), "--", seconds=300)
                .decode()
                .split()
            )

    def merge(self, ours: str, theirs: str) -> MergedTree:
        """Return the merge of two commits; nothing is moved or pushed."""
        with self._mirror.locked():
            work = fetched_for_merge(self._git, self._mirror, [self._checked(ours), self._checked(theirs)])
            return merge_commits(work, ours, theirs)

    def publish_merge(
        self, branch: str, merged: MergedTree, *, parents: Sequence[str], files: Mapping[str, bytes], message: str
    ) -> str:
        """Push the merge commit to a branch and return its id; see the port."""

        def push() -> str:
            with self._mirror.locked():
                work = fetched_for_merge(self._git, self._mirror, [self._checked(parent) for parent in parents])
                made = build_merge(work, merged.tree, parents=parents, files=files, message=message)
                publish_merge(self._git, work, branch, made=made, parent=parents[0])
                return made

        return _insisting(push)

    def _patch_id(self, git: Git, commit: str) -> str:
        options = ["--root", "-p", "--no-renames", "--no-ext-diff", "--no-textconv", "--no-commit-id"]
        patch = git.run("diff-tree", *options, "--end-of-options", commit, seconds=600)
        return (
            git.run("patch-id", "--stable", data=b"commit %s\n%s" % (commit.encode(), patch)).decode().partition(" ")[0]
        )

    def _checked(self, commit: str) -> str:
        if not _COMMIT.fullmatch(commit):
            raise RefNotFoundError(self.url, f"commit {commit!r}")
        return commit


def _insisting(push: Callable[[], T]) -> T:
    """Return what ``push`` returns, tried again while others are faster: each lost race is somebody's progress.

    ``push`` reads the refs anew and raises StaleRefError itself where one that it needs has really moved.
    """
    for attempt in range(RACES):
        try:
            return push()
        except LostRaceError:
            if attempt == RACES - 1:
                raise
        time.sleep(random.uniform(0, 0.05 * 2 ** min(attempt, 6)))  # noqa: S311  (spreads writers)
    raise AssertionError("the last attempt returned or raised")


def open_git(
    url: str,
    *,
    username: str = "",
    password: str = "",
    ssh_key: str = "",
    known_hosts: str = "",
    signing_key: str = "",
    cache: Path,
) -> GitRepository:
    """Return the repository at ``url``; nothing is contacted yet.

    Args:
        url: ``https://``, ``http://``, ``ssh://``, ``user@host:path``, ``file://`` or an absolute folder.
        username: For http(s); any name does where the password is a token.
        password: Password or token for http(s).
        ssh_key: Private key, as a path or as its text.
        known_hosts: Host keys that are accepted, as a path or as text; empty accepts a new host once and remembers it.
        signing_key: Private Ed25519 key that signs commits and tags, as a path or as its text; empty signs nothing.
        cache: Folder for mirrors, one per repository; may be shared and deleted.

    Raises:
        RepositoryAddressError: The URL is not one of the supported forms.
    """
    address = parse_address(url)
    return GitRepository(Git(address, Credentials(username, password, ssh_key, known_hosts, signing_key)), cache)


def _chosen(found: dict[str, RemoteRef], patterns: Sequence[str]) -> dict[str, str]:
    return {name: ref.commit for name, ref in found.items() if name != "HEAD" and matches(name, patterns)}
