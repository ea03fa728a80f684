"""What a run's commit changed, and since when: the push before, where its branch left the default one, or as asked."""

from __future__ import annotations

from dataclasses import dataclass

from deepseek_ops.core.config import PipelineFile, load_pipeline
from deepseek_ops.core.errors import PermanentError, RefNotFoundError
from deepseek_ops.core.ports import GitRemote
from deepseek_ops.core.records import GitRef
from deepseek_ops.pipeline.branches import HEADS, NoDefaultBranchError, default_branch, ref_of
from deepseek_ops.pipeline.changes import PIPELINE_FILE, ChangeSummary, classify


@dataclass(frozen=True, slots=True)
class Before:
    """The commit to compare with, and what it is called."""

    commit: str
    shown: str
    pipeline: PipelineFile | None
    """Its pipeline file; None where it has none that can be read."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What a commit changed. ``before`` and ``paths`` are None where there is nothing to compare with."""

    before: Before | None
    paths: tuple[str, ...] | None
    summary: ChangeSummary

    def nothing_new(self, ref: GitRef) -> bool:
        """Whether ``ref`` is compared with itself: the default branch has the commit already."""
        return self.before is not None and self.before.commit == ref.commit


def moved_since(git: GitRemote, ref: GitRef, config: PipelineFile, *, against: str = "") -> Moved:
    """Return what the commit changed since ``against``: a ref, else what its branch was before.

    A branch that is not known to have been anywhere before is compared with where it left the default branch: what
    others did there since is no change of its own. Raises RefNotFoundError for an ``against`` that is not there.
    """
    old, shown = _before(git, ref, against)
    if not old:
        return Moved(None, None, ChangeSummary())
    try:
        paths = [] if old == ref.commit else git.changed_paths(old, ref.commit)
    except RefNotFoundError:  # after a forced push the server may have dropped the old commit
        if against:
            raise
        return Moved(None, None, ChangeSummary())
    before = Before(old, shown, _pipeline_of(git, old))
    return Moved(before, tuple(paths), classify(paths, new=config, old=before.pipeline, against=shown))


def _before(git: GitRemote, ref: GitRef, against: str) -> tuple[str, str]:
    """Return the commit to compare with, and what it is called; two empty texts when there is none."""
    if against:
        commit = ref_of(git, against).commit
        name = against.removesuffix(commit).rstrip("@")
        return commit, f"{name} ({commit[:12]})" if name else commit[:12]
    if ref.previous:
        return ref.previous, f"the push before to {ref.short} ({ref.previous[:12]})"
    try:
        name = default_branch(git)
    except NoDefaultBranchError:
        return "", ""
    if ref.name == f"{HEADS}{name}":
        return "", ""
    tip = git.resolve(f"{HEADS}{name}").commit
    base = git.merge_base(tip, ref.commit) or ""
    return base, f"{name} ({base[:12]})" if base == tip else f"where it left {name} ({base[:12]})"


def _pipeline_of(git: GitRemote, commit: str) -> PipelineFile | None:
    try:
        return load_pipeline(git.read_file(commit, PIPELINE_FILE), file=PIPELINE_FILE)
    except PermanentError:
        return None
