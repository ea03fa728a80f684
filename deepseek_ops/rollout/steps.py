"""How a rollout moves."""

from __future__ import annotations

from deepseek_ops.core.config import Deployment
from deepseek_ops.core.records import Phase, Rollout
from deepseek_ops.rollout.errors import StrategyMismatchError
from deepseek_ops.rollout.observation import Observation
from deepseek_ops.rollout.policies import RolloutPolicy, policy_for

_P99_REQUESTS = 100
"""Below this the 99th percentile is the slowest request, and one slow request is no evidence."""


def first_rollout(endpoint: str, stable: str, candidate: str, deployment: Deployment) -> Rollout:
    """Return the rollout before its first step, at 0 percent.

    ``stable`` is empty for the first deployment. A candidate that is the stable version already comes back promoted:
    deploying twice moves nothing.
    """
    rollout = Rollout(
        endpoint=endpoint,
        stable=stable,
        candidate=candidate,
        strategy=deployment.strategy,
        steps=policy_for(deployment).steps if stable else (100,),
    )
    if stable != candidate:
        return rollout
    return rollout.evolve(percent=100, phase=Phase.PROMOTED, reason=f"{candidate} serves already")


def next_step(rollout: Rollout, seen: Observation, policy: RolloutPolicy) -> Rollout:
    """Return the rollout after one look at its traffic: held, widened, promoted or rolled back.

    A breach rolls back at once, without waiting for ``min_requests``: too little traffic to promote on is still
    enough to stop on. A settled rollout comes back unchanged, and a step is left only on requests of its own, so a
    retried task does not move traffic twice. Raises StrategyMismatchError.
    """
    if rollout.phase is not Phase.PROGRESSING:
        return rollout
    if policy.strategy != rollout.strategy:
        raise StrategyMismatchError(rollout.endpoint, rollout.strategy, policy.strategy)
    if breach := _breach(seen, policy):
        return rollout.evolve(percent=0, phase=Phase.ROLLED_BACK, reason=breach)
    if seen.percent is not None and seen.percent != rollout.percent:
        return rollout
    if not rollout.stable:
        # Nobody serves: waiting for requests would wait for ever, and there is nothing to compare with.
        return rollout.evolve(percent=100, phase=Phase.PROMOTED, reason="first version, and healthy")
    needs_requests = rollout.percent > 0 or rollout.strategy == "shadow"
    if needs_requests and seen.requests < policy.min_requests:
        return rollout
    if rollout.strategy == "shadow":
        return rollout.evolve(percent=100, phase=Phase.PROMOTED, reason=f"{seen.requests} mirrored requests held")
    wider = next((step for step in policy.steps if step > rollout.percent), None)
    if wider is None:
        return rollout.evolve(percent=100, phase=Phase.PROMOTED, reason="all steps held")
    return rollout.evolve(percent=wider)


def _breach(seen: Observation, policy: RolloutPolicy) -> str:
    """Return what the candidate did wrong as a sentence with numbers, or an empty text."""
    if not seen.healthy:
        return "the candidate does not answer its health probe"
    if seen.error_rate > policy.max_error_rate:
        return (
            f"{seen.errors} of {seen.requests} requests failed: "
            f"{seen.error_rate:.1%} is above max_error_rate={policy.max_error_rate:.1%}"
        )
    return _slower("p50", policy.min_latency_requests, seen, policy) or _slower("p99", _P99_REQUESTS, seen, policy)


def _slower(point: str, needed: int, seen: Observation, policy: RolloutPolicy) -> str:
    if min(seen.requests, seen.stable_requests) < max(needed, policy.min_latency_requests):
        return ""
    now, usual = (
        (seen.latency_p50_ms, seen.stable_latency_p50_ms)
        if point == "p50"
        else (seen.latency_p99_ms, seen.stable_latency_p99_ms)
    )
    if now is None or not usual or now <= usual * policy.max_latency_ratio:
        return ""
    return (
        f"latency {point} is {now:.0f} ms against {usual:.0f} ms of the stable version: "
        f"above max_latency_ratio={policy.max_latency_ratio:g}"
    )
