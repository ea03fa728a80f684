"""Which values to try next, and which trial was best: pure functions of the trials so far."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import JsonValue

from deepseek_ops.core.config.base import Direction
from deepseek_ops.core.errors import MissingDependencyError, PermanentError
from deepseek_ops.core.records import Name, Trial
from deepseek_ops.tuning.space import Dimension, SearchSpace, Values

if TYPE_CHECKING:
    import optuna

Sampler = Literal["tpe", "random", "grid"]
_STARTUP_TRIALS = 8
"""Random trials before TPE has enough to learn from."""
_REDRAWS = 16
"""Asks before an untried combination is taken instead of a repeated one."""


@dataclass(eq=False)
class SearchExhaustedError(PermanentError):
    """Every combination of a finite search space has been tried."""

    size: int

    def __str__(self) -> str:
        return f"all {self.size} combinations have been tried; add values, or set sweep.trials to at most {self.size}."


def suggest(
    space: SearchSpace,
    trials: Sequence[Trial],
    *,
    number: int,
    sampler: Sampler,
    seed: int,
    direction: Direction = "minimize",
) -> Values:
    """Return the values of trial ``number``, given the trials so far; equal arguments give equal values.

    In a finite space no combination is given out twice while untried ones are left; a ``failed`` trial (lost machine,
    full disk) says nothing about its values, so they may come again. A complete or pruned trial without an objective
    has diverged and counts as the worst seen. Running trials are expected to do no better than the worst (constant
    liar), so that parallel trials spread out. Raises SearchExhaustedError, and MissingDependencyError for ``tpe``
    without Optuna.
    """
    known = [trial for trial in trials if trial.state != "failed" and space.contains(trial.values)]
    untried = _untried(space, known)
    if untried is not None and not untried:
        raise SearchExhaustedError(space.size or 0)
    if untried is not None and len(untried) == 1:
        return untried[0]
    if sampler == "grid":
        return _grid_point(space, untried, number)
    if sampler == "random":
        return _random_point(space, untried, random.Random(f"{seed}/{number}"))  # noqa: S311  (a search, no secret)
    return _tpe_point(space, known, untried, number=number, seed=seed, direction=direction)


def next_trials(
    space: SearchSpace,
    trials: Sequence[Trial],
    *,
    study: Name,
    count: int,
    sampler: Sampler,
    seed: int,
    direction: Direction = "minimize",
) -> tuple[Trial, ...]:
    """Return up to ``count`` new running trials for one parallel round; fewer where a finite space runs out."""
    after = max((trial.number for trial in trials), default=-1) + 1
    fresh: list[Trial] = []
    for number in range(after, after + count):
        try:
            values = suggest(space, [*trials, *fresh], number=number, sampler=sampler, seed=seed, direction=direction)
        except SearchExhaustedError:
            break
        fresh.append(Trial(study=study, number=number, values=values))
    return tuple(fresh)


def best(trials: Sequence[Trial], direction: Direction = "minimize") -> Trial | None:
    """Return the complete trial with the best objective, the earlier one of equals; None without any."""
    sign = 1 if direction == "minimize" else -1
    finished = [trial for trial in trials if trial.state == "complete" and trial.objective is not None]
    return min(finished, key=lambda trial: (sign * (trial.objective or 0.0), trial.number), default=None)


def _untried(space: SearchSpace, known: Sequence[Trial]) -> list[Values] | None:
    """Return the combinations not yet given out in grid order, or None for an infinite space."""
    if space.size is None:
        return None
    tried = {_point(space, trial.values) for trial in known}
    return [values for values in space.grid() if _point(space, values) not in tried]


def _point(space: SearchSpace, values: Values) -> tuple[JsonValue, ...]:
    return tuple(values[one.name] for one in space.dimensions)


def _grid_point(space: SearchSpace, untried: list[Values] | None, number: int) -> Values:
    if untried is None:
        raise ValueError("the grid sampler needs a finite space; the pipeline file's checks refuse this")
    own = next(itertools.islice(space.grid(), number, None), None)  # so that parallel asks without each other differ
    return own if own in untried else untried[0]


def _random_point(space: SearchSpace, untried: list[Values] | None, source: random.Random) -> Values:
    if untried is not None:
        return source.choice(untried)
    return {one.name: _draw(one, source) for one in space.dimensions}


def _draw(one: Dimension, source: random.Random) -> int | float:
    if one.choices is not None:
        return source.choice(one.choices)
    if one.log:
        value = math.exp(source.uniform(math.log(one.low), math.log(one.high)))
    else:
        value = source.uniform(one.low, one.high)
    value = min(max(value, one.low), one.high)
    return round(value) if one.integer else value


def _tpe_point(
    space: SearchSpace,
    known: Sequence[Trial],
    untried: list[Values] | None,
    *,
    number: int,
    seed: int,
    direction: Direction,
) -> Values:
    mixed = random.Random(f"{seed}/{number}")  # noqa: S311  (a search, no secret)
    for _ in range(_REDRAWS):
        values = _ask(space, known, seed=mixed.getrandbits(32), direction=direction)
        if untried is None or values in untried:
            return values
    return _random_point(space, untried, mixed)


def _ask(space: SearchSpace, known: Sequence[Trial], *, seed: int, direction: Direction) -> Values:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise MissingDependencyError("optuna", "sweep", "the tpe sampler") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=_STARTUP_TRIALS, constant_liar=True)
    study = optuna.create_study(study_name="ask", sampler=sampler, direction=direction)
    distributions = {one.name: _distribution(one) for one in space.dimensions}
    worst = _worst(known, direction)
    study.add_trials([_frozen(trial, space, distributions, worst) for trial in known])
    drawn = study.ask(distributions).params
    return {one.name: _decode(one, drawn[one.name]) for one in space.dimensions}


def _distribution(one: Dimension) -> optuna.distributions.BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if one.choices is not None:  # by position: neighbours of a stepped range stay neighbours
        last = len(one.choices) - 1
        return IntDistribution(0, last) if one.ordered else CategoricalDistribution(range(last + 1))
    if one.integer:
        return IntDistribution(int(one.low), int(one.high), log=one.log)
    return FloatDistribution(one.low, one.high, log=one.log)


def _encode(one: Dimension, value: JsonValue) -> JsonValue:
    return value if one.choices is None else one.choices.index(value)


def _decode(one: Dimension, drawn: JsonValue) -> JsonValue:
    return drawn if one.choices is None else one.choices[drawn]  # type: ignore[index]


def _worst(known: Sequence[Trial], direction: Direction) -> float:
    """Return the objective a diverged trial is given: the worst that any trial reached, 0.0 before the first."""
    seen = [trial.objective for trial in known if trial.objective is not None]
    seen += [value for trial in known for _, value in trial.curve[-1:]]
    return (max if direction == "minimize" else min)(seen, default=0.0)


def _frozen(
    trial: Trial,
    space: SearchSpace,
    distributions: dict[str, optuna.distributions.BaseDistribution],
    worst: float,
) -> optuna.trial.FrozenTrial:
    from optuna.trial import TrialState, create_trial

    params = {one.name: _encode(one, trial.values[one.name]) for one in space.dimensions}
    if trial.state == "running":
        return create_trial(state=TrialState.RUNNING, params=params, distributions=distributions)
    if trial.state == "pruned" and trial.curve:
        return create_trial(
            state=TrialState.PRUNED, params=params, distributions=distributions, intermediate_values=dict(trial.curve)
        )
    value = worst if trial.objective is None else trial.objective
    return create_trial(state=TrialState.COMPLETE, params=params, distributions=distributions, value=value)
