"""What we push ourselves, noted before it is pushed: no moment is left in which a watcher could take it for somebody's.

A release pushes a tag, and a tag starts a release; a training pushes its record to the branch that it trained, and a
push starts a training. Who watches asks here whose it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from deepseek_ops.core.digests import digest_of
from deepseek_ops.core.errors import ObjectExistsError
from deepseek_ops.core.ports import Facts, GitRemote
from deepseek_ops.core.records import CommitId, GitRef, Record
from deepseek_ops.pipeline.changes import is_recorded

OWN_TAG = "own_tag"
"""Kind of the facts that name the tags we push."""
OWN_COMMIT = "own_commit"
"""Kind of the facts that name the commits we push to branches, keyed ``<repository>/<commit>``."""
_ALL = 1_000_000
_FEW = 50
"""Commits that are looked up one by one; of more, all that are known are read at once."""


class OwnCommit(Record):
    """A commit of ours on a branch: the record of an experiment, on the commit that was trained."""

    commit: CommitId
    parent: CommitId
    ref: str
    """Full name of the branch that we pushed it to."""


Ours = Callable[[Sequence[str]], list[OwnCommit]]
"""Those of some commits that are ours, in the order given."""


@dataclass(frozen=True, slots=True)
class PeoplesChange:
    """What people changed between two commits."""

    paths: tuple[str, ...]
    base: str
    """The commit that theirs is to be compared with."""
    ours: tuple[OwnCommit, ...] = ()
    """Our commits in between, newest first."""


def note_own_tag(facts: Facts, repository: str, tag: str, commit: str) -> None:
    """Note that we are about to push a tag (short name) to a commit."""
    key = f"{_place(repository)}/{tag}"
    try:
        facts.insert(OWN_TAG, key, {"commit": commit})
    except ObjectExistsError:
        fact = facts.get(OWN_TAG, key)
        if fact is not None and fact.body.get("commit") != commit:
            facts.update(fact, {"commit": commit})


def is_own_tag(facts: Facts, ref: GitRef) -> bool:
    """Return whether we pushed this tag to this commit; one that somebody moved is not ours any more."""
    fact = facts.get(OWN_TAG, f"{_place(ref.repository)}/{ref.short}")
    return fact is not None and fact.body.get("commit") == ref.commit


def note_own_commit(facts: Facts, repository: str, own: OwnCommit) -> None:
    """Note that we are about to push a commit to a branch."""
    try:
        facts.insert(OWN_COMMIT, f"{_place(repository)}/{own.commit}", own.dump())
    except ObjectExistsError:
        return  # an earlier try; a commit's id says what it is on


def own_commits(facts: Facts, repository: str, commits: Sequence[str]) -> list[OwnCommit]:
    """Return those of the commits that are ours, in the order given."""
    prefix = f"{_place(repository)}/"
    if len(commits) <= _FEW:
        found = [facts.get(OWN_COMMIT, f"{prefix}{commit}") for commit in commits]
        return [OwnCommit.load(fact.body) for fact in found if fact is not None]
    known = {fact.key: fact for fact in facts.find(OWN_COMMIT, prefix=prefix, limit=_ALL)}
    return [OwnCommit.load(known[f"{prefix}{commit}"].body) for commit in commits if f"{prefix}{commit}" in known]


def without_ours(git: GitRemote, old: str, new: str, paths: Sequence[str], ours: Ours) -> PeoplesChange:
    """Return what people changed of the paths that differ between two commits: our records in between are left out.

    People changed what differs between ``old`` and the commit that our first record is on, and after each record what
    differs until the next. Where the branch was put back behind a record of ours, the base is what that was on.
    """
    if not any(is_recorded(path) for path in paths):
        return PeoplesChange(tuple(paths), old)
    if (left := ours([old])) and git.merge_base(old, new) != old:
        old = left[0].parent
        paths = _differing(git, old, new)
    found = ours(git.reachable([new], without=[old]))
    start, theirs = old, set[str]()
    for one in reversed(found):
        theirs.update(_differing(git, start, one.parent))
        start = one.commit
    base = old if theirs & set(paths) else start
    theirs.update(_differing(git, start, new))
    return PeoplesChange(tuple(path for path in paths if path in theirs), base, tuple(found))


def _differing(git: GitRemote, old: str, new: str) -> list[str]:
    return [] if old == new else git.changed_paths(old, new)


def _place(repository: str) -> str:
    return digest_of(repository.encode())[:12]
