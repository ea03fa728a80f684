"""What a gateway must do for a rollout."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from deepseek_ops.core.jobs import TrafficPlan
from deepseek_ops.core.records import Phase, Rollout
from deepseek_ops.rollout.errors import MissingBackendError, NobodyToServeError

_NO_NAMES: Mapping[str, str] = MappingProxyType({})


def traffic_plan(
    rollout: Rollout, backends: Mapping[str, str], *, models: Mapping[str, str] = _NO_NAMES
) -> TrafficPlan:
    """Return the plan that is this state of the rollout. Weights sum to 100.

    While it progresses both versions are in the plan, so that going back is a change of weights and nothing has to
    start; once it is settled the loser is out and may be stopped.

    Args:
        rollout: The state.
        backends: Version -> host:port; more than are needed do no harm.
        models: Version -> model name its backend expects, where that differs from what clients ask for.

    Raises:
        MissingBackendError: A version of the plan is not in ``backends``.
        NobodyToServeError: A first deployment at 0 percent.
    """
    weights, mirrors = _shares(rollout)
    versions = {**weights, **mirrors}
    for version in versions:
        if version not in backends:
            raise MissingBackendError(rollout.endpoint, version, tuple(sorted(backends)))
    return TrafficPlan(
        endpoint=rollout.endpoint,
        weights=weights,
        mirrors=mirrors,
        backends={version: backends[version] for version in versions},
        models={version: models[version] for version in versions if version in models},
    )


def _shares(rollout: Rollout) -> tuple[dict[str, int], dict[str, int]]:
    """Return weights and mirrors."""
    if rollout.phase is Phase.PROMOTED:
        return {rollout.candidate: 100}, {}
    if not rollout.stable:
        if rollout.percent < 100:
            raise NobodyToServeError(rollout.endpoint, rollout.candidate, rollout.phase.value)
        return {rollout.candidate: 100}, {}
    if rollout.phase is Phase.ROLLED_BACK:
        return {rollout.stable: 100}, {}
    if rollout.strategy == "shadow":
        return {rollout.stable: 100}, {rollout.candidate: 100}
    return {rollout.stable: 100 - rollout.percent, rollout.candidate: rollout.percent}, {}
