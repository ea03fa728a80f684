"""What a candidate must show before it gets more, and what it may not do."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from deepseek_ops.core.config import Deployment
from deepseek_ops.core.records import Record

Percent = Annotated[int, Field(ge=1, le=100)]


class _Guardrails(Record):
    """What every strategy watches."""

    min_requests: int = Field(default=20, ge=0, description="Requests of the candidate's own before a step is left.")
    max_error_rate: float = Field(default=0.01, ge=0, le=1, description="Share of failed requests that is accepted.")
    max_latency_ratio: float = Field(
        default=2.0, gt=0, description="Accepted latency of the candidate, as a multiple of the stable version's."
    )
    min_latency_requests: int = Field(
        default=20, ge=1, description="Requests on both sides before latencies are compared: a first answer is slow."
    )


class CanaryPolicy(_Guardrails):
    """More of the users at each step."""

    strategy: Literal["canary"] = "canary"
    steps: tuple[Percent, ...] = Field(default=(5, 20, 50, 100), min_length=1, description="Rising, ends at 100.")


class BlueGreenPolicy(_Guardrails):
    """All users at once, with the stable version kept beside until the candidate has proved itself."""

    strategy: Literal["blue-green"] = "blue-green"
    steps: tuple[Percent, ...] = Field(default=(100,), min_length=1, max_length=1)


class ShadowPolicy(_Guardrails):
    """Copies of the requests only, whose answers nobody sees; then all users at once."""

    strategy: Literal["shadow"] = "shadow"
    steps: tuple[Percent, ...] = Field(default=(100,), min_length=1, max_length=1)


RolloutPolicy = Annotated[CanaryPolicy | BlueGreenPolicy | ShadowPolicy, Field(discriminator="strategy")]


def policy_for(deployment: Deployment) -> CanaryPolicy | BlueGreenPolicy | ShadowPolicy:
    """Return the policy that a pipeline file's ``deployment`` asks for."""
    if deployment.strategy == "canary":
        return CanaryPolicy(steps=deployment.steps)
    return BlueGreenPolicy() if deployment.strategy == "blue-green" else ShadowPolicy()
