"""Whether a moved ref is worth a run: by ref and path globs, or by the pushed commit's own pipeline file.

What a change is, for path filters:

* a branch that moved, forwards or by a forced push: the paths that differ between the old and the new commit;
* a new branch: what differs from where it left the default branch; without common history, all its paths;
* a new branch whose commit the default branch has already: nothing changed, so path filters keep it out;
* a tag: no change of its own; path filters do not apply to tags.

A pipeline file that cannot be read as one does not hide the push: the run starts and fails with the file's own error,
where its author sees it. A commit without the file asks for nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from deepseek_ops.core.errors import GitAccessError, PermanentError, RefNotFoundError

if TYPE_CHECKING:
    from deepseek_ops.adapters.git import GitRepository
    from deepseek_ops.core.config import PipelineFile
    from deepseek_ops.core.records import GitRef

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Change:
    """The paths a moved ref changed. ``nothing_new``: the default branch has the commit already."""

    paths: tuple[str, ...]
    nothing_new: bool = False

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


def is_wanted(remote: GitRepository, ref: GitRef, *, paths: Sequence[str], pipeline_file: str) -> bool:
    """Return whether the moved ref passes the filters. Blocking; raises the port's errors when it cannot tell."""
    return wish_of(remote, ref, paths=paths, pipeline_file=pipeline_file).wanted


def wish_of(
    remote: GitRepository, ref: GitRef, *, paths: Sequence[str], pipeline_file: str, look: Look | None = None
) -> Wish:
    """Return what the filters, and with ``pipeline_file`` the commit's own triggers, say about the moved ref.

    Blocking; raises the port's errors when it cannot tell.
    """
    from deepseek_ops.core.config import load_pipeline

    if not paths and not pipeline_file:
        return Wish(True)
    tag = ref.name.startswith("refs/tags/")
    change = Change(()) if tag else change_of(remote, ref, look)
    if not tag and not change.touches(paths):
        return Wish(False)
    if not pipeline_file:
        return Wish(True)
    try:
        pipeline = load_pipeline(remote.read_file(ref.commit, pipeline_file), file=pipeline_file)
    except RefNotFoundError:
        log.info("%s at %s has no %s: nothing to run", ref.short, ref.commit[:12], pipeline_file)
        return Wish(False)
    except (GitAccessError, PermanentError) as error:
        log.warning("%s at %s: %s", ref.short, ref.commit[:12], error)
        return Wish(True)
    return asks_for(pipeline, ref, change)


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


def change_of(remote: GitRepository, ref: GitRef, look: Look | None = None) -> Change:
    """Return what the moved branch changed. With ``look`` nobody is asked for the default branch again."""
    if ref.previous:
        try:
            return Change(tuple(remote.changed_paths(ref.previous, ref.commit)))
        except RefNotFoundError as error:
            # After a forced push the server may have thrown the old commit away; the new one must be there.
            if ref.commit in str(error):
                raise
    default = look.default if look else remote.default_branch()
    start = _tip(remote, default, look)
    if start is None or default == ref.name:
        return Change(tuple(remote.changed_paths(None, ref.commit)))
    base = remote.merge_base(start, ref.commit)
    return Change(tuple(remote.changed_paths(base, ref.commit)), nothing_new=base == ref.commit)


def _tip(remote: GitRepository, default: str | None, look: Look | None) -> str | None:
    """Return the default branch's commit, or None when there is none yet."""
    if default is None:
        return None
    return look.refs.get(default) if look else remote.resolve(default).commit
