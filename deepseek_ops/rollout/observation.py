"""One look at a rollout's traffic."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Self

from pydantic import Field, model_validator

from deepseek_ops.core.jobs import TrafficStats
from deepseek_ops.core.records import Record, Rollout

_NOTHING: Mapping[str, TrafficStats] = MappingProxyType({})


class Observation(Record):
    """What was seen of the candidate since the present step began, and of the stable version for comparison.

    The stable version's counts reach further back: at 100 percent it gets no requests and is still what is compared.
    """

    healthy: bool = Field(description="Whether the candidate answers its health probe.")
    requests: int = Field(default=0, ge=0, description="Requests the candidate answered, mirrored ones included.")
    errors: int = Field(default=0, ge=0, description="Of these, 5xx answers and failed connections.")
    latency_p50_ms: float | None = Field(default=None, ge=0)
    latency_p99_ms: float | None = Field(default=None, ge=0)
    stable_requests: int = Field(default=0, ge=0)
    stable_errors: int = Field(default=0, ge=0)
    stable_latency_p50_ms: float | None = Field(default=None, ge=0)
    stable_latency_p99_ms: float | None = Field(default=None, ge=0)
    percent: int | None = Field(
        default=None, ge=0, le=100, description="The candidate's share at the look; a look at another share is stale."
    )

    @model_validator(mode="after")
    def _errors_are_requests(self) -> Self:
        for errors, requests in ((self.errors, self.requests), (self.stable_errors, self.stable_requests)):
            if errors > requests:
                raise ValueError(f"{errors} errors in {requests} requests")
        return self

    @property
    def error_rate(self) -> float:
        """Share of the candidate's requests that failed; 0 before the first request."""
        return self.errors / self.requests if self.requests else 0.0


def observe(
    rollout: Rollout,
    stats: Mapping[str, TrafficStats],
    *,
    healthy: bool,
    since: Mapping[str, TrafficStats] = _NOTHING,
) -> Observation:
    """Return the look that a gateway's counters are.

    ``since`` holds the counters read when the present step began. Counters below it mean that the gateway was
    restarted and counts from zero again: then all it has counted belongs to this step. The stable version's counters
    and both versions' percentiles are the gateway's, over all that it has counted.
    """
    nothing = TrafficStats(requests=0, errors=0)
    candidate = _grown(stats.get(rollout.candidate, nothing), since.get(rollout.candidate))
    stable = stats.get(rollout.stable, nothing)
    return Observation(
        healthy=healthy,
        requests=candidate.requests,
        errors=candidate.errors,
        latency_p50_ms=candidate.latency_p50_ms,
        latency_p99_ms=candidate.latency_p99_ms,
        stable_requests=stable.requests,
        stable_errors=min(stable.errors, stable.requests),
        stable_latency_p50_ms=stable.latency_p50_ms,
        stable_latency_p99_ms=stable.latency_p99_ms,
        percent=rollout.percent,
    )


def _grown(now: TrafficStats, before: TrafficStats | None) -> TrafficStats:
    if before is None or now.requests < before.requests or now.errors < before.errors:
        before = TrafficStats(requests=0, errors=0)
    requests = now.requests - before.requests
    # The two counters are not read in one instant: an error can be counted whose request is not yet.
    return now.evolve(requests=requests, errors=min(now.errors - before.errors, requests))
