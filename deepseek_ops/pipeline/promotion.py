"""From an experiment's branch to a merge that people can review: the winner's commit, merged, with what it wins by.

Nothing is decided for the team: the merge commit is pushed to a branch of its own and nobody's branch moves, unless the
target itself is named. What does not merge is told file by file and nothing is pushed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import quote, urlencode, urlsplit

from deepseek_ops.core.config import load_pipeline
from deepseek_ops.core.errors import PermanentError, RefNotFoundError, StaleRefError
from deepseek_ops.core.ports import GitRemote, MergeConflict
from deepseek_ops.core.records import GitRef
from deepseek_ops.data.pointer_merge import PointerMerge
from deepseek_ops.pipeline.experiments import Experiment, experiments_of
from deepseek_ops.pipeline.promotion_message import promotion_message
from deepseek_ops.pipeline.runs import PIPELINE_FILE

MergePointer = Callable[[str, str, str], PointerMerge]
"""Base, ours and theirs of a dataset pointer -> their merge."""
Host = Literal["github", "gitlab", ""]

_POINTER = re.compile(r"data/[^/]+\.dataset\.yaml")
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
class Unmerged:
    """A file that people have to merge."""

    path: str
    problem: str
    ours: str
    theirs: str


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
    url: str = ""
    """Where a merge request is opened; empty where the host is not known."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What to promote, and how the winner is found: ``metric`` and ``direction`` default to the pipeline file's."""

    source: str
    into: str = "main"
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

    Raises NothingRecordedError, PromotionBranchTakenError, and StaleRefError when a target named as the branch to push
    keeps moving.
    """
    for attempt in range(ATTEMPTS):
        try:
            return _promote_once(git, wish, merge_pointer)
        except StaleRefError:
            if wish.branch != wish.into or attempt == ATTEMPTS - 1:
                raise
    raise AssertionError("the last attempt returned or raised")


def _promote_once(git: GitRemote, wish: Wish, merge_pointer: MergePointer) -> Promotion:
    into, source = git.resolve(wish.into), git.resolve(wish.source)
    known = experiments_of(git.record_texts())
    baseline = _last_of(known, set(git.reachable([into.commit])))
    new = set(git.reachable([source.commit], without=[into.commit]))
    if not new:
        return Promotion("merged already", wish.branch, wish.into, "", source.commit, baseline=baseline)
    metric, direction = _judged(git, source, wish)
    winner = _winner(known, new, source, metric, direction)
    if winner is None and not wish.tip:
        raise NothingRecordedError(git.url, wish.source, wish.into)
    merges = source.commit if wish.tip or winner is None else _commit_in(winner, new)
    merged = git.merge(into.commit, merges)
    if merged.merged:
        return Promotion("merged already", wish.branch, wish.into, "", merges, winner, baseline)
    files, conflicts = _resolve(merged.conflicts, merge_pointer)
    about = (wish.branch, wish.into)
    if conflicts:
        return Promotion(
            "conflicts", *about, "", merges, winner, baseline, resolved=tuple(files), conflicts=tuple(conflicts)
        )
    message = promotion_message(
        source=wish.source, into=wish.into, merges=merges, winner=winner, baseline=baseline, metric=metric
    )
    status: Literal["opened", "open already"] = "opened"
    try:
        made = git.publish_merge(wish.branch, merged, parents=(into.commit, merges), files=files, message=message)
    except StaleRefError:
        if wish.branch == wish.into:
            raise
        made, status = _there_already(git, wish.branch, merges), "open already"
    url = "" if wish.branch == wish.into else review_url(git.url, wish.branch, wish.into, host=wish.host)
    return Promotion(status, *about, made, merges, winner, baseline, message, tuple(files), url=url)


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


def _judged(git: GitRemote, source: GitRef, wish: Wish) -> tuple[str, str]:
    metric, direction = "val_loss", "minimize"
    try:
        text = git.read_file(source.commit, PIPELINE_FILE).decode(errors="replace")
    except RefNotFoundError:
        pass
    else:
        rules = load_pipeline(text, file=PIPELINE_FILE).validation
        metric, direction = rules.metric, rules.direction
    return wish.metric or metric, wish.direction or direction


def _winner(
    known: Sequence[Experiment], new: set[str], source: GitRef, metric: str, direction: str
) -> Experiment | None:
    """Return the best experiment of the source: by the metric, the newest where none has it; a tag means its own."""
    tag = source.name.removeprefix("refs/tags/") if source.name.startswith("refs/tags/") else ""
    candidates = [one for one in known if _commit_in(one, new) and (not tag or tag in one.tags)]
    judged = [one for one in candidates if metric in one.record.performance]
    if not judged:
        return candidates[0] if candidates else None
    sign = -1 if direction == "maximize" else 1
    return min(judged, key=lambda one: sign * one.record.performance[metric])  # of equal ones the newest


def _commit_in(experiment: Experiment, commits: set[str]) -> str:
    """Return the commit of an experiment that is among ``commits`` or, held by a tag only, stands on one; else ""."""
    for commit in (experiment.commit, *experiment.copies):
        if commit in commits:
            return commit
    held = experiment.source == "commit" and len(experiment.parents) == 1 and experiment.parents[0] in commits
    return experiment.commit if held else ""


def _last_of(known: Sequence[Experiment], commits: set[str]) -> Experiment | None:
    return next((one for one in known if _commit_in(one, commits)), None)


def _resolve(
    conflicts: Sequence[MergeConflict], merge_pointer: MergePointer
) -> tuple[dict[str, bytes], list[Unmerged]]:
    files: dict[str, bytes] = {}
    left: list[Unmerged] = []
    for one in conflicts:
        problem = _what_happened(one)
        if _POINTER.fullmatch(one.path) and one.ours is not None and one.theirs is not None:
            merged = merge_pointer(_text(one.base), _text(one.ours), _text(one.theirs))
            if not merged.problem:
                files[one.path] = merged.text.encode()
                continue
            problem = merged.problem
        left.append(Unmerged(one.path, problem, _text(one.ours), _text(one.theirs)))
    return files, left


def _what_happened(one: MergeConflict) -> str:
    if one.ours is None and one.theirs is None:
        return "both sides changed it, and it is no text"
    if one.ours is None or one.theirs is None:
        return "one side changed it, the other deleted it or made it no text"
    return "both sides added it" if one.base is None else "both sides changed the same lines"


def _text(data: bytes | None) -> str:
    return data.decode(errors="replace") if data is not None else ""


def _there_already(git: GitRemote, branch: str, merges: str) -> str:
    """Return the tip of a branch that holds an earlier merge of the same commit; people may have worked on it."""
    tip = git.resolve(f"refs/heads/{branch}").commit
    if merges not in git.reachable([tip]):
        raise PromotionBranchTakenError(git.url, branch, tip)
    return tip
