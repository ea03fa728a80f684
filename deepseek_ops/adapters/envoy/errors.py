"""What can go wrong with the gateway on this machine."""

from __future__ import annotations

from dataclasses import dataclass

from deepseek_ops.core.errors import PermanentError, TransientError


@dataclass(eq=False)
class PlanError(PermanentError):
    """A traffic plan that cannot be meant: nothing was changed."""

    endpoint: str
    field: str
    problem: str
    remedy: str

    def __str__(self) -> str:
        return f"traffic plan of {self.endpoint}: {self.field}: {self.problem} {self.remedy}"


@dataclass(eq=False)
class PlanRejectedError(PermanentError):
    """Envoy refused a plan; the plan before it is still effective."""

    endpoint: str
    problem: str

    def __str__(self) -> str:
        return (
            f"Envoy rejects the traffic plan of {self.endpoint}: {self.problem}. "
            "The plan before it is still effective; correct this one."
        )


@dataclass(eq=False)
class GatewayPortError(PermanentError):
    """Another program has the port that clients of an endpoint use."""

    endpoint: str
    port: int

    def __str__(self) -> str:
        return (
            f"port {self.port} of endpoint {self.endpoint} is taken by another program: "
            "end that program, or give the gateway another port."
        )


@dataclass(eq=False)
class GatewayStartError(TransientError):
    """Envoy did not come up."""

    problem: str
    log: str

    def __str__(self) -> str:
        return f"Envoy did not start: {self.problem} (log: {self.log})"


@dataclass(eq=False)
class GatewayTimeoutError(TransientError):
    """Envoy runs and does not answer, or has not taken its configuration in time."""

    what: str
    seconds: float
    log: str

    def __str__(self) -> str:
        return (
            f"{self.what} took longer than {self.seconds:g} s; if it stays so, stop the gateway and start it again "
            f"(log: {self.log})."
        )
