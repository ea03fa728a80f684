"""Which experiment of a branch is promoted: the best by one metric, and what people have to know about that choice."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from deepseek_ops.core.config import PipelineFile, load_pipeline
from deepseek_ops.core.config.base import Direction
from deepseek_ops.core.errors import PermanentError, RefNotFoundError
from deepseek_ops.core.ports import GitRemote
from deepseek_ops.core.records import GitRef
from deepseek_ops.pipeline.experiments import Experiment
from deepseek_ops.pipeline.metric_directions import directions_of
from deepseek_ops.pipeline.runs import PIPELINE_FILE

DEFAULT_METRIC = "val_loss"
"""Where the commit has no pipeline file."""


@dataclass(eq=False)
class UnknownMetricError(PermanentError):
    """A metric to choose by that no experiment of the branch was measured with."""

    source: str
    metric: str
    known: tuple[str, ...]

    def __str__(self) -> str:
        near = difflib.get_close_matches(self.metric, self.known, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        return (
            f"no experiment of {self.source} has the metric {self.metric!r}; {hint}"
            f"Known are {', '.join(self.known) or 'none'}."
        )


@dataclass(eq=False)
class UnknownDirectionError(PermanentError):
    """A metric of which nobody said whether more or less of it is better."""

    metric: str

    def __str__(self) -> str:
        return (
            f"nothing says whether more or less {self.metric} is better; add --direction minimize or "
            "--direction maximize, or declare it in validation of the pipeline file."
        )


@dataclass(frozen=True, slots=True)
class Judge:
    """What decides. ``asked``: a person named the metric, it is not the pipeline file's."""

    metric: str
    direction: Direction | None
    """None: nobody said; then no value is better than another one."""
    asked: bool = False

    def better(self, one: float, other: float) -> bool:
        """Return whether the first value is known to be the better one; of equal ones none is."""
        return (self.direction == "maximize" and one > other) or (self.direction == "minimize" and one < other)


def judge_of(git: GitRemote, source: GitRef, *, metric: str = "", direction: Direction | None = None) -> Judge:
    """Return what decides: the pipeline file's metric where none is named."""
    config = _pipeline_of(git, source)
    named = metric or (config.validation.metric if config else DEFAULT_METRIC)
    return Judge(named, direction or directions_of(config).get(named), asked=bool(metric))


def candidates_of(known: Sequence[Experiment], new: set[str], source: GitRef) -> list[Experiment]:
    """Return the experiments whose commit is among ``new``, newest first; a tag means its own."""
    tag = source.name.removeprefix("refs/tags/") if source.name.startswith("refs/tags/") else ""
    return [one for one in known if commit_in(one, new) and (not tag or tag in one.tags)]


def winner_of(candidates: Sequence[Experiment], judge: Judge, *, source: str) -> Experiment | None:
    """Return the best one, of equal ones the newest; the newest where none has the pipeline file's own metric.

    Raises UnknownMetricError for a metric that somebody named and none has, and UnknownDirectionError where several
    have it.
    """
    judged = [one for one in candidates if judge.metric in one.record.performance]
    if not judged:
        if judge.asked and candidates:
            known = sorted({name for one in candidates for name in one.record.performance})
            raise UnknownMetricError(source, judge.metric, tuple(known))
        return candidates[0] if candidates else None
    if judge.direction is None and len(judged) > 1:
        raise UnknownDirectionError(judge.metric)
    sign = -1 if judge.direction == "maximize" else 1
    return min(judged, key=lambda one: sign * one.record.performance[judge.metric])


def doubts(
    winner: Experiment | None, baseline: Experiment | None, candidates: Sequence[Experiment], judge: Judge, *, into: str
) -> tuple[str, ...]:
    """Return what speaks against merging the winner, a sentence each."""
    if winner is None:
        return ()
    metric = judge.metric
    ours, theirs = winner.record.performance, baseline.record.performance if baseline else {}
    if metric not in ours:
        chosen = f"No experiment has {metric}: of {len(candidates)} the newest is merged, which need not be the best."
        return (chosen,) if len(candidates) > 1 else ()
    if metric not in theirs or not judge.better(theirs[metric], ours[metric]):
        return ()
    beside = f"{metric} {ours[metric]:.6g}, while the last experiment of {into} has {theirs[metric]:.6g}"
    return (f"The winner is worse than {into}: {beside}.",)


def commit_in(experiment: Experiment, commits: set[str]) -> str:
    """Return the commit of an experiment that is among ``commits`` or, held by a tag only, stands on one; else ""."""
    for commit in (experiment.commit, *experiment.copies):
        if commit in commits:
            return commit
    held = experiment.source == "commit" and len(experiment.parents) == 1 and experiment.parents[0] in commits
    return experiment.commit if held else ""


def _pipeline_of(git: GitRemote, source: GitRef) -> PipelineFile | None:
    try:
        text = git.read_file(source.commit, PIPELINE_FILE)
    except RefNotFoundError:
        return None
    return load_pipeline(text, file=PIPELINE_FILE)
