"""How a record gets into Git: as a commit, a note or a tag alone, as the team's rules say and the host allows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from deepseek_ops.core.config.recording import Records
from deepseek_ops.core.errors import GitAccessError, StaleRefError
from deepseek_ops.core.ports import Facts, GitRemote, NewCommit, NewNote, NewTag
from deepseek_ops.pipeline.own_pushes import OwnCommit, note_own_commit, note_own_tag

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recorded:
    """Where a record stands."""

    way: str
    """``commit``, ``notes`` or ``tag-only``."""
    commit: str
    """The commit that the tag is on: the record's own, or the one that was trained."""
    tag: str
    tag_object: str
    on_branch: bool = False
    """Whether the branch holds the commit; where people were faster, only the tag does."""


def push_record(git: GitRemote, rules: Records, *, commit: NewCommit, tag: str, facts: Facts | None = None) -> Recorded:
    """Push the record and its tag together and return where it stands; the same record again changes nothing.

    ``commit`` is how it looks as a commit: on the trained commit, with the message that is the record. Where the host
    refuses what ``rules.write`` asks for, ``rules.when_refused`` is done and the log says so. With ``facts``, what is
    pushed is noted as ours before that: no watcher takes it for somebody's. Raises GitAccessError when ``when_refused``
    is refused, too.
    """
    other = rules.when_refused
    try:
        return _push(git, _way_of(git, rules, commit, tag), commit, tag, facts)
    except GitAccessError as error:
        if other in ("fail", rules.write):
            raise
        log.warning("the record %s cannot be written as %s: %s Written as %s instead.", tag, rules.write, error, other)
        return _push(git, other, commit, tag, facts)


def _way_of(git: GitRemote, rules: Records, commit: NewCommit, tag: str) -> str:
    """Return how to write: as the rules say, or as an earlier try of the same task has done it."""
    name = f"refs/tags/{tag}"
    there = git.refs([name]).get(name)
    if there is None:
        return rules.write
    if there != commit.parent:
        return "commit"
    return rules.write if rules.write != "commit" else rules.when_refused


def _push(git: GitRemote, way: str, commit: NewCommit, tag: str, facts: Facts | None) -> Recorded:
    if way in ("commit", "fail"):  # "fail": a tag of another make is in the way, and publishing says so
        return _push_commit(git, commit, tag, facts)
    tags = [NewTag(name=tag, target=commit.parent, message=commit.message)]
    notes = [NewNote(commit.parent, commit.message)] if way == "notes" else []
    if facts is not None:
        note_own_tag(facts, git.url, tag, commit.parent)
    ids = git.publish(tags=tags, notes=notes)
    return Recorded(way, commit.parent, tag, ids[tag])


def _push_commit(git: GitRemote, commit: NewCommit, tag: str, facts: Facts | None) -> Recorded:
    """Push the commit to its branch; where people have pushed meanwhile, only the tag holds it: nothing is forced."""
    tags = [NewTag(name=tag, target="", message=commit.message)]
    if commit.branch:
        try:
            ids = git.publish(commit=commit, tags=tags, before=_noting(git, commit, tag, facts))
            return Recorded("commit", ids[commit.branch], tag, ids[tag], on_branch=True)
        except StaleRefError:
            log.info("%s has moved on since %s: the tag %s holds the record", commit.branch, commit.parent[:12], tag)
    held = NewCommit(branch="", parent=commit.parent, message=commit.message, files=commit.files)
    ids = git.publish(commit=held, tags=tags, before=_noting(git, held, tag, facts))
    return Recorded("commit", ids[""], tag, ids[tag])


def _noting(
    git: GitRemote, commit: NewCommit, tag: str, facts: Facts | None
) -> Callable[[Mapping[str, str]], None] | None:
    """Return what notes the commit, as soon as its id is known, and its tag as ours."""
    if facts is None:
        return None

    def note(ids: Mapping[str, str]) -> None:
        made = ids[commit.branch]
        if commit.branch:
            own = OwnCommit(commit=made, parent=commit.parent, ref=f"refs/heads/{commit.branch}")
            note_own_commit(facts, git.url, own)
        note_own_tag(facts, git.url, tag, made)

    return note
