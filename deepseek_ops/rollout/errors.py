"""What can go wrong when a rollout is driven with facts that do not belong to it."""

from __future__ import annotations

from dataclasses import dataclass

from deepseek_ops.core.errors import PermanentError


@dataclass(eq=False)
class StrategyMismatchError(PermanentError):
    """A rollout was judged by the policy of another strategy."""

    endpoint: str
    strategy: str
    policy: str

    def __str__(self) -> str:
        return (
            f"the rollout on {self.endpoint} is strategy={self.strategy!r} and its policy is for {self.policy!r}: "
            "judge it by the policy of the deployment that began it."
        )


@dataclass(eq=False)
class MissingBackendError(PermanentError):
    """A version is to get requests and nobody knows where it listens."""

    endpoint: str
    version: str
    known: tuple[str, ...]

    def __str__(self) -> str:
        known = ", ".join(self.known) or "none"
        return f"no backend for version {self.version} of {self.endpoint} (known: {known}): start serving it first."


@dataclass(eq=False)
class NobodyToServeError(PermanentError):
    """No version may get the requests of an endpoint: a first deployment that was not checked, or was rolled back."""

    endpoint: str
    candidate: str
    phase: str

    def __str__(self) -> str:
        return (
            f"{self.endpoint} has no stable version and its first candidate {self.candidate} is {self.phase} at 0 %: "
            "there is no traffic to plan; take a step with a healthy candidate first."
        )
