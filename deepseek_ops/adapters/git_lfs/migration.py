"""Large files out of Git's history and into Git LFS, with a way back at every moment.

``git lfs migrate import`` rewrites the commits. Around it: nothing begins on a tree with changes or commits nobody else
has, every file at every ref is compared by digest before and after, and the refs go back by themselves when one
differs. The old refs are written to a file in the Git folder first, and kept under ``refs/deepseek-ops/before-lfs``
once the rewrite is done: git-lfs moves every ref it finds, so a backup made before would be rewritten too. Nothing is
pushed but objects: replacing a shared history is a decision of people.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deepseek_ops.adapters.git_lfs.survey import all_refs, content_digests
from deepseek_ops.adapters.git_lfs.worktree_git import git, try_git
from deepseek_ops.core.errors import PermanentError

BACKUP = "refs/deepseek-ops/before-lfs"
ATTRIBUTES = ".gitattributes"
MIGRATE_SECONDS = 24 * 3600.0


@dataclass(eq=False)
class NotReadyToMigrateError(PermanentError):
    """A repository in which a rewrite could lose something."""

    folder: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.folder} is not migrated: {self.problem}; {self.remedy}."


@dataclass(eq=False)
class MigrationChangedContentError(PermanentError):
    """A file is not what it was; every ref was put back."""

    ref: str
    path: str

    def __str__(self) -> str:
        return (
            f"after the rewrite {self.path} at {self.ref} has other content, so every ref was put back to what it "
            f"was; report this with the version of git-lfs."
        )


@dataclass(frozen=True, slots=True)
class Migrated:
    """What was rewritten, and what people do next."""

    patterns: tuple[str, ...]
    refs: Mapping[str, tuple[str, str]]
    """Ref -> commit before and after."""
    num_files: int
    """Files whose digests were compared, over all refs."""
    backup: str
    uploaded_to: str
    """Remote whose LFS store got the objects; empty when there is none."""

    @property
    def next_steps(self) -> tuple[str, ...]:
        """What is left to do, in order."""
        upload = () if self.uploaded_to else ("name a store and run: git lfs push --all origin",)
        others = (
            "everybody clones again; who cannot: git fetch, then git reset --hard origin/BRANCH on each branch, and "
            "git rebase --onto for commits of their own; a merge with the old history would bring it back"
        )
        forget = (
            f"when all is well: git for-each-ref --format='delete %(refname)' {self.backup} | git update-ref --stdin "
            "&& git reflog expire --expire=now --all && git gc --prune=now"
        )
        undo = (
            f"to undo instead: git fetch . '+{self.backup}/heads/*:refs/heads/*' '+{self.backup}/tags/*:refs/tags/*' "
            "--update-head-ok && git reset --hard"
        )
        publish = "git push --force-with-lease origin --all && git push --force origin --tags"
        return (*upload, "tell everybody to push what they have and to stop", publish, others, forget, undo)


def migrate(
    folder: Path, patterns: Sequence[str], *, remote: str = "origin", environment: Mapping[str, str] | None = None
) -> Migrated:
    """Rewrite every branch and tag so that files of these patterns are Git LFS pointers, and upload their objects.

    Raises:
        NotReadyToMigrateError: The tree has changes, commits are not pushed, or the clone is not complete.
        MigrationChangedContentError: Verification failed; the refs are as they were.
        WorkTreeGitError: git or git-lfs failed. After an upload that failed the rewritten refs stay, verified.
    """
    variables = {**os.environ, **(environment or {})}
    _require_ready(folder, patterns, remote)
    before = all_refs(folder)
    digests = content_digests(folder, before, without=(ATTRIBUTES,))
    old = _Refs.of(folder)
    backup = old.note(folder)
    try:
        include = f"--include={','.join(patterns)}"
        refs = [f"--include-ref={name}" for name in before]
        command = ["lfs", "migrate", "import", "--yes", "--skip-fetch", include, *refs]
        git(folder, *command, environment=variables, seconds=MIGRATE_SECONDS)
        _require_same(digests, content_digests(folder, all_refs(folder), without=(ATTRIBUTES,)))
        old.write(folder, backup)
        git(folder, "lfs", "checkout", environment=variables, seconds=MIGRATE_SECONDS)
    except BaseException:
        old.write(folder, "refs")
        git(folder, "reset", "--hard", "--quiet", environment=variables)  # the tree had no changes when this began
        raise
    after = all_refs(folder)
    return Migrated(
        patterns=tuple(patterns),
        refs={name: (commit, after[name]) for name, commit in before.items()},
        num_files=sum(len(paths) for paths in digests.values()),
        backup=backup,
        uploaded_to=_upload(folder, remote, variables),
    )


def _require_ready(folder: Path, patterns: Sequence[str], remote: str) -> None:
    def refuse(problem: str, remedy: str) -> NotReadyToMigrateError:
        return NotReadyToMigrateError(str(folder), problem, remedy)

    if not patterns or any("," in pattern or not pattern.strip() for pattern in patterns):
        raise refuse("no pattern, or one with a comma, was given", "name kinds such as '*.pt'")
    if git(folder, "status", "--porcelain", "--untracked-files=no").strip():
        raise refuse("the work tree has changes", "commit or stash them")
    if git(folder, "rev-parse", "--is-shallow-repository").strip() == b"true":
        raise refuse("the clone is shallow", "run `git fetch --unshallow`")
    if try_git(folder, "config", "--get-regexp", r"^remote\..*\.promisor$")[0] == 0:
        raise refuse("the clone is partial", "clone it again without --filter")
    for state in ("rebase-merge", "rebase-apply", "MERGE_HEAD", "CHERRY_PICK_HEAD", "BISECT_LOG"):
        if (folder / git(folder, "rev-parse", "--git-path", state).decode().strip()).exists():
            raise refuse(f"a rebase, merge or bisection is under way ({state})", "finish or abort it")
    if git(folder, "remote").split():
        ahead = int(git(folder, "rev-list", "--count", "--branches", "--not", "--remotes"))
        if ahead:
            raise refuse(f"{ahead} commits are on no remote", f"push them (git push {remote} --all), or delete them")


@dataclass(frozen=True, slots=True)
class _Refs:
    """Every branch and tag as it is: name below ``refs/`` and object, tag objects included."""

    rows: tuple[tuple[str, str], ...]

    @classmethod
    def of(cls, folder: Path) -> _Refs:
        listed = git(folder, "for-each-ref", "--format=%(objectname) %(refname)", "refs/heads", "refs/tags").decode()
        pairs = (line.split(" ", 1) for line in listed.splitlines())
        return cls(tuple((name.removeprefix("refs/"), oid) for oid, name in pairs))

    def note(self, folder: Path) -> str:
        """Write the refs to a new file of the Git folder, so that they outlive this process; return their prefix."""
        notes = folder / git(folder, "rev-parse", "--git-path", "deepseek-ops").decode().strip()
        notes.mkdir(exist_ok=True)
        number = 1
        while (notes / f"before-lfs-{number}").exists() or git(folder, "for-each-ref", f"{BACKUP}/{number}"):
            number += 1
        (notes / f"before-lfs-{number}").write_text("".join(f"{oid} refs/{name}\n" for name, oid in self.rows))
        return f"{BACKUP}/{number}"

    def write(self, folder: Path, prefix: str) -> None:
        """Point the refs below ``prefix`` at what they were, all or none."""
        commands = "".join(f"update {prefix}/{name} {oid}\n" for name, oid in self.rows)
        git(folder, "update-ref", "--stdin", data=commands.encode())


def _require_same(before: Mapping[str, Mapping[str, str]], after: Mapping[str, Mapping[str, str]]) -> None:
    for ref in sorted(before.keys() | after.keys()):
        old, new = before.get(ref, {}), after.get(ref, {})
        for path in sorted(old.keys() | new.keys()):
            if old.get(path) != new.get(path):
                raise MigrationChangedContentError(ref, path)


def _upload(folder: Path, remote: str, environment: Mapping[str, str]) -> str:
    if remote not in git(folder, "remote").decode().split():
        return ""
    git(folder, "lfs", "push", "--all", remote, environment=environment, seconds=MIGRATE_SECONDS)
    return remote
