"""Whether a push starts a run, told before it is pushed, or after it started none.

The watcher decides by the same rules: documentation alone never starts one, else the first Git trigger that wants the
ref does.
"""

from __future__ import annotations

from collections.abc import Sequence

from deepseek_ops.core.config import GitPushTrigger, GitTagTrigger, PipelineFile, matches_ref
from deepseek_ops.core.config.globs import matches_paths
from deepseek_ops.core.records import GitRef, Record
from deepseek_ops.pipeline.changes import PIPELINE_FILE, only_docs


class PushVerdict(Record):
    """What a push does, and why."""

    starts: bool
    why: str

    def text(self) -> str:
        """Return the verdict as one line for people."""
        return f"a push of it starts {'a run' if self.starts else 'no run'}: {self.why}"


def push_verdict(
    config: PipelineFile, ref: GitRef, paths: Sequence[str] | None, *, nothing_new: bool = False
) -> PushVerdict:
    """Return whether a push of ``ref`` that changed ``paths`` (None: not known) starts a run.

    ``nothing_new``: the default branch has the commit already, so the branch is new and changes nothing.
    """
    if ref.name.startswith("refs/tags/"):
        return _of_tag(config, ref)
    if paths is not None and not nothing_new and only_docs(config, paths):
        return PushVerdict(starts=False, why="it changes documentation only")
    triggers = [one for one in config.triggers if isinstance(one, GitPushTrigger)]
    watching = [one for one in triggers if matches_ref(one.branches, ref.short)]
    if not watching:
        watched = ", ".join(dict.fromkeys(glob for one in triggers for glob in one.branches))
        told = f"its git-push triggers watch {watched}" if triggers else "it has no git-push trigger"
        return PushVerdict(starts=False, why=f"{PIPELINE_FILE} does not ask for branch {ref.short}; {told}")
    for one in watching:
        if not one.paths or (paths and matches_paths(one.paths, paths)):
            return PushVerdict(starts=True, why=f"the git-push trigger for {', '.join(one.branches)} wants it")
    globs = ", ".join(dict.fromkeys(glob for one in watching for glob in one.paths))
    if paths is None:
        return PushVerdict(starts=True, why=f"where it changes a path of the git-push trigger: {globs}")
    return PushVerdict(starts=False, why=f"no changed path is one of the git-push trigger: {globs}")


def _of_tag(config: PipelineFile, ref: GitRef) -> PushVerdict:
    for one in config.triggers:
        if isinstance(one, GitTagTrigger) and one.wants(ref.short):
            return PushVerdict(starts=True, why=f"the git-tag trigger for {', '.join(one.tags)} wants it ({one.run})")
    return PushVerdict(starts=False, why=f"no git-tag trigger of {PIPELINE_FILE} wants tag {ref.short}")
