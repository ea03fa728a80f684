"""From an experiment's branch to a merge that people can review: the winner's commit, merged, with what it wins by.

Nothing is decided for the team: the merge commit is pushed to a branch of its own and nobody's branch moves, unless the
target itself is named. What does not merge is told file by file and nothing is pushed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import quote, urlencode, urlsplit

from deepseek_ops.core.errors import PermanentError, RefNotFoundError, StaleRefError
from deepseek_ops.core.ports import GitRemote
from deepseek_ops.core.records import GitRef
from deepseek_ops.pipeline.branches import HEADS, branch_name, default_branch
from deepseek_ops.pipeline.experiments import Experiment, experiments_of
from deepseek_ops.pipeline.promotion_choice import candidates_of, commit_in, doubts, judge_of, winner_of
from deepseek_ops.pipeline.promotion_conflicts import MergePointer, Unmerged, resolve_conflicts
from deepseek_ops.pipeline.promotion_message import promotion_message

Host = Literal["github", "gitlab", ""]

_SCP = re.compile(r"^[^/@\s]+@(?P<host>[^/:\s]+):(?P<path>.+)$")
ATTEMPTS = 5


@dataclass(eq=False)
class NothingRecordedError(PermanentError):
    """A branch without a record was to be promoted."""

    repository: str
    branch: str
    into: str

    def __str__(self) -> str:
        return (
            f"{self.branch} of {self.repository} has no experiment that {self.into} has not; wait for its run, "
            "or merge the branch as it stands with --tip."
        )


@dataclass(eq=False)
class PromotionBranchTakenError(PermanentError):
    """The branch for the merge holds something else."""

    repository: str
    branch: str
    commit: str

    def __str__(self) -> str:
        return (
            f"branch {self.branch} of {self.repository} stands at {self.commit[:12]}, which is another merge; "
            "delete it, or name another one with --push-branch."
        )


@dataclass(frozen=True, slots=True)
class Promotion:
    """What came of it."""

    status: Literal["opened", "open already", "merged already", "conflicts"]
    branch: str
    into: str
    commit: str
    """The merge commit; empty where there is none."""
    merges: str
    """The commit that is merged."""
    winner: Experiment | None = None
    baseline: Experiment | None = None
    message: str = ""
    resolved: tuple[str, ...] = ()
    """Dataset pointers that were merged by merging the datasets."""
    conflicts: tuple[Unmerged, ...] = ()
    doubts: tuple[str, ...] = ()
    """What speaks against it, a sentence each."""
    url: str = ""
    """Where a merge request is opened; empty where the host is not known."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What to promote, and how the winner is found: ``metric`` and ``direction`` default to the pipeline file's.

    ``into`` is the repository's default branch where it is not named.
    """

    source: str
    into: str = ""
    push_branch: str = ""
    metric: str = ""
    direction: Literal["minimize", "maximize", ""] = ""
    tip: bool = False
    host: Host = ""

    @property
    def branch(self) -> str:
        return self.push_branch or f"promote/{self.source.removeprefix('refs/heads/').removeprefix('refs/tags/')}"


def promote(git: GitRemote, wish: Wish, *, merge_pointer: MergePointer) -> Promotion:
    """Push the merge of the best experiment of ``wish.source`` and return what came of it; doing it again finds it.

    Raises NothingRecordedError, UnknownMetricError, UnknownDirectionError, BranchNameError, PromotionBranchTakenError,
    and StaleRefError when a target named as the branch to push keeps moving.
    """
    into = branch_name(wish.into) if wish.into else default_branch(git)
    wish = replace(wish, into=into, push_branch=branch_name(wish.branch))
    for attempt in range(ATTEMPTS):
        try:
            return _promote_once(git, wish, merge_pointer)
        except StaleRefError:
            if wish.branch != wish.into or attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("the last attempt returned or raised")


def _promote_once(git: GitRemote, wish: Wish, merge_pointer: MergePointer) -> Promotion:
    into, source = _branch(git, wish.into), git.resolve(wish.source)
    known = experiments_of(git.record_texts())
    baseline = _last_of(known, set(git.reachable([into.commit])))
    new = set(git.reachable([source.commit], without=[into.commit]))
    if not new:
        return Promotion("merged already", wish.branch, wish.into, "", source.commit, baseline=baseline)
    judge = judge_of(git, source, metric=wish.metric, direction=wish.direction or None)
    candidates = candidates_of(known, new, source)
    winner = winner_of(candidates, judge, source=wish.source)
    if winner is None and not wish.tip:
        raise NothingRecordedError(git.url, wish.source, wish.into)
    merges = source.commit if wish.tip or winner is None else commit_in(winner, new)
    merged = git.merge(into.commit, merges)
    about = (wish.branch, wish.into)
    if merged.merged:
        return Promotion("merged already", *about, "", merges, winner, baseline)
    files, conflicts = resolve_conflicts(merged.conflicts, merge_pointer)
    told = doubts(winner, baseline, candidates, judge, into=wish.into)
    found = Promotion("conflicts", *about, "", merges, winner, baseline, resolved=tuple(files), doubts=told)
    if conflicts:
        return replace(found, conflicts=tuple(conflicts))
    message = promotion_message(
        source=wish.source, into=wish.into, merges=merges, winner=winner, baseline=baseline, metric=judge.metric,
        doubts=told,
    )  # fmt: skip
    status: Literal["opened", "open already"] = "opened"
    try:
        made = git.publish_merge(wish.branch, merged, parents=(into.commit, merges), files=files, message=message)
    except StaleRefError:
        if wish.branch == wish.into:
            raise
        made, status = _there_already(git, wish.branch, merges), "open already"
    url = "" if wish.branch == wish.into else review_url(git.url, wish.branch, wish.into, host=wish.host)
    return replace(found, status=status, commit=made, message=message, url=url)


def _branch(git: GitRemote, name: str) -> GitRef:
    found = git.resolve(name)
    if not found.name.startswith(HEADS):
        raise RefNotFoundError(git.url, f"branch {name}")  # a tag of this name: nothing is merged for a tag
    return found


def review_url(repository: str, branch: str, into: str, *, host: Host = "") -> str:
    """Return the page that opens a pull or merge request; empty where the host is not known by its name."""
    if match := _SCP.match(repository):
        name, path = match["host"], match["path"]
    else:
        parts = urlsplit(repository)
        name, path = parts.hostname or "", parts.path
        if parts.scheme in ("http", "https"):
            name = parts.netloc.rpartition("@")[2]
    kind = host or ("gitlab" if "gitlab" in name else "github" if "github" in name else "")
    if not name:
        return ""
    page = f"https://{name}/{path.strip('/').removesuffix('.git')}"
    if kind == "github":
        return f"{page}/compare/{quote(into, safe='')}...{quote(branch, safe='')}?expand=1"
    if kind == "gitlab":
        asked = {"merge_request[source_branch]": branch, "merge_request[target_branch]": into}
        return f"{page}/-/merge_requests/new?{urlencode(asked)}"
    return ""


def _last_of(known: Sequence[Experiment], commits: set[str]) -> Experiment | None:
    return next((one for one in known if commit_in(one, commits)), None)


def _there_already(git: GitRemote, branch: str, merges: str) -> str:
    """Return the tip of a branch that holds an earlier merge of the same commit; people may have worked on it."""
    tip = git.resolve(f"refs/heads/{branch}").commit
    if merges not in git.reachable([tip]):
        raise PromotionBranchTakenError(git.url, branch, tip)
    return tip
