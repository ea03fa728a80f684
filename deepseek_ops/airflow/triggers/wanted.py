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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

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

        return not globs or (not self.nothing_new and matches_paths(globs, self.paths))


def is_wanted(remote: GitRepository, ref: GitRef, *, paths: Sequence[str], pipeline_file: str) -> bool:
    """Return whether the moved ref passes the filters. Blocking; raises the port's errors when it cannot tell."""
    from deepseek_ops.core.config import load_pipeline

    if not paths and not pipeline_file:
        return True
    tag = ref.name.startswith("refs/tags/")
    change = Change(()) if tag else change_of(remote, ref)
    if not tag and not change.touches(paths):
        return False
    if not pipeline_file:
        return True
    try:
        pipeline = load_pipeline(remote.read_file(ref.commit, pipeline_file), file=pipeline_file)
    except RefNotFoundError:
        log.info("%s at %s has no %s: nothing to run", ref.short, ref.commit[:12], pipeline_file)
        return False
    except (GitAccessError, PermanentError) as error:
        log.warning("%s at %s: %s", ref.short, ref.commit[:12], error)
        return True
    return asks_for(pipeline, ref, change)


def asks_for(pipeline: PipelineFile, ref: GitRef, change: Change) -> bool:
    """Return whether one of the pipeline's Git triggers wants the ref."""
    from deepseek_ops.core.config.triggers import GitPushTrigger, GitTagTrigger

    for trigger in pipeline.triggers:
        if isinstance(trigger, GitTagTrigger) and ref.name.startswith("refs/tags/"):
            if trigger.wants(ref.short):
                return True
        elif (
            isinstance(trigger, GitPushTrigger)
            and ref.name.startswith("refs/heads/")
            and trigger.wants(ref.short, change.paths)
            and change.touches(trigger.paths)
        ):
            return True
    return False


def change_of(remote: GitRepository, ref: GitRef) -> Change:
    """Return what the moved branch changed."""
    if ref.previous:
        try:
            return Change(tuple(remote.changed_paths(ref.previous, ref.commit)))
        except RefNotFoundError as error:
            # After a forced push the server may have thrown the old commit away; the new one must be there.
            if ref.commit in str(error):
                raise
    default = remote.default_branch()
    if default is None or default == ref.name:
        return Change(tuple(remote.changed_paths(None, ref.commit)))
    start = remote.resolve(default).commit
    base = remote.merge_base(start, ref.commit)
    return Change(tuple(remote.changed_paths(base, ref.commit)), nothing_new=base == ref.commit)
