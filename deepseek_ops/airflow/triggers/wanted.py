"""Whether a moved ref is worth a run: by ref and path globs, or by the pushed commit's own pipeline file.

What a change is, for path filters:

* a branch that moved, forwards or by a forced push: the paths that differ between the old and the new commit;
* a new branch: what differs from where it left the default branch; without common history, all its paths;
* a new branch whose commit the default branch has already: nothing changed, so path filters keep it out;
* a tag: no change of its own; path filters do not apply to tags. One on no commit (a file, a folder) is unwanted.

What we commit ourselves is no change: the record of an experiment is unwanted on the branch that we pushed it to, and
left out of what people push on top of it.

A pipeline file that cannot be read as one does not hide the push: the run starts and fails with the file's own error,
where its author sees it. A commit without the file asks for nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from deepseek_ops.core.errors import DeepSeekOpsError, GitAccessError, PermanentError, RefNotFoundError

if TYPE_CHECKING:
    from deepseek_ops.adapters.git import GitRepository
    from deepseek_ops.core.config import PipelineFile
    from deepseek_ops.core.records import GitRef
    from deepseek_ops.pipeline.own_pushes import Ours

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Change:
    """The paths that people changed in a moved ref."""

    paths: tuple[str, ...]
    nothing_new: bool = False
    """The default branch has the commit already."""
    base: str = ""
    """What they are compared with where that is not what the ref was before: a record of ours, or what that is on."""
    ours: bool = False
    """Nothing but our own record came to the branch, and we pushed it there."""

    def touches(self, globs: Sequence[str]) -> bool:
        """Return whether a changed path matches; no globs match anything."""
        from deepseek_ops.core.config.globs import matches_paths

        # No paths are a known "nothing" here (an empty commit, a reverted burst), where the globs would let them in.
        return not globs or (bool(self.paths) and matches_paths(globs, self.paths))


class Look(Protocol):
    """What is known of the repository already: its refs and its default branch."""

    @property
    def refs(self) -> Mapping[str, str]: ...

    @property
    def default(self) -> str | None: ...


@dataclass(frozen=True, slots=True)
class Wish:
    """Whether a moved ref is to be announced, and after how many seconds at rest."""

    wanted: bool
    debounce: float = 0.0
    base: str = ""
    """What its change is compared with where that is not what the ref was before."""


def is_wanted(remote: GitRepository, ref: GitRef, *, paths: Sequence[str], pipeline_file: str) -> bool:
    """Return whether the moved ref passes the filters. Blocking; raises the port's errors when it cannot tell."""
    return wish_of(remote, ref, paths=paths, pipeline_file=pipeline_file).wanted


def wish_of(
    remote: GitRepository,
    ref: GitRef,
    *,
    paths: Sequence[str],
    pipeline_file: str,
    look: Look | None = None,
    ours: Ours | None = None,
) -> Wish:
    """Return what the filters, and with ``pipeline_file`` the commit's own triggers, say about the moved ref.

    ``ours`` tells our own commits, which are not wanted. Blocking; raises the port's errors when it cannot tell.
    """
    if not paths and not pipeline_file:
        return Wish(ours is None or not _is_our_move(ref, ours))
    if ref.name.startswith("refs/tags/"):
        if not pipeline_file:
            return Wish(True)
        if not remote.is_commit(ref.commit):
            log.info("tag %s is on no commit: nothing to run", ref.short)
            return Wish(False)
        return _wish_of_file(remote, ref, Change(()), pipeline_file)
    change = change_of(remote, ref, look, ours)
    if change.ours or not change.touches(paths):
        return Wish(False)
    wish = _wish_of_file(remote, ref, change, pipeline_file) if pipeline_file else Wish(True)
    return replace(wish, base=change.base)


def _wish_of_file(remote: GitRepository, ref: GitRef, change: Change, pipeline_file: str) -> Wish:
    from deepseek_ops.core.config import load_pipeline

    try:
        pipeline = load_pipeline(remote.read_file(ref.commit, pipeline_file), file=pipeline_file)
    except RefNotFoundError:
        log.info("%s at %s has no %s: nothing to run", ref.short, ref.commit[:12], pipeline_file)
        return Wish(False)
    except (GitAccessError, PermanentError) as error:
        log.warning("%s at %s: %s", ref.short, ref.commit[:12], error)
        return Wish(True)
    return asks_for(pipeline, ref, change)


def _is_our_move(ref: GitRef, ours: Ours) -> bool:
    """Return whether we moved the ref, from what we trained to our record of it. Looks at no file."""
    try:
        return any(one.ref == ref.name and one.parent == ref.previous for one in ours([ref.commit]))
    except DeepSeekOpsError as error:
        log.warning("cannot tell whether %s at %s is ours: %s", ref.short, ref.commit[:12], error)
        return False


def asks_for(pipeline: PipelineFile, ref: GitRef, change: Change) -> Wish:
    """Return what the first of the pipeline's Git triggers that wants the ref says."""
    from deepseek_ops.core.config.triggers import GitPushTrigger, GitTagTrigger
    from deepseek_ops.pipeline.changes import only_docs

    if not change.nothing_new and only_docs(pipeline, change.paths):
        log.info("%s at %s changes documentation only: nothing to run", ref.short, ref.commit[:12])
        return Wish(False)
    for trigger in pipeline.triggers:
        if isinstance(trigger, GitTagTrigger) and ref.name.startswith("refs/tags/"):
            if trigger.wants(ref.short):
                return Wish(True)
        elif (
            isinstance(trigger, GitPushTrigger)
            and ref.name.startswith("refs/heads/")
            and trigger.wants(ref.short, change.paths)
            and change.touches(trigger.paths)
        ):
            return Wish(True, trigger.debounce.total_seconds() if trigger.debounce else 0.0)
    return Wish(False)


def change_of(remote: GitRepository, ref: GitRef, look: Look | None = None, ours: Ours | None = None) -> Change:
    """Return what people changed in the moved branch. With ``look`` nobody is asked for the default branch again."""
    if ref.previous:
        try:
            return _change_since(remote, ref, ref.previous, ours)
        except RefNotFoundError as error:
            # After a forced push the server may have thrown the old commit away; the new one must be there.
            if ref.commit in str(error):
                raise
    default = look.default if look else remote.default_branch()
    start = _tip(remote, default, look)
    base = None if start is None or default == ref.name else remote.merge_base(start, ref.commit)
    if base is None:
        return Change(tuple(remote.changed_paths(None, ref.commit)))
    return replace(_change_since(remote, ref, base, ours), nothing_new=base == ref.commit)


def _change_since(remote: GitRepository, ref: GitRef, start: str, ours: Ours | None) -> Change:
    from deepseek_ops.pipeline.own_pushes import without_ours

    paths = remote.changed_paths(start, ref.commit)
    if ours is None:
        return Change(tuple(paths))
    found = without_ours(remote, start, ref.commit, paths, ours)
    pushed = any(one.commit == ref.commit and one.ref == ref.name for one in found.ours)
    return Change(found.paths, base="" if found.base == start else found.base, ours=pushed and not found.paths)


def _tip(remote: GitRepository, default: str | None, look: Look | None) -> str | None:
    """Return the default branch's commit, or None when there is none yet."""
    if default is None:
        return None
    return look.refs.get(default) if look else remote.resolve(default).commit
