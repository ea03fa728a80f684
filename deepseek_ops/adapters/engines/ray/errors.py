"""What can go wrong between us and a Ray cluster."""

from __future__ import annotations

from dataclasses import dataclass

from deepseek_ops.core.errors import PermanentError, TransientError


@dataclass(eq=False)
class RayUnavailableError(TransientError):
    """The cluster's dashboard does not answer, or answers with a server error."""

    address: str
    request: str
    problem: str

    def __str__(self) -> str:
        return (
            f"Ray cluster {self.address} did not serve {self.request}: {self.problem}. Check that its head runs, that "
            "the address is that of the dashboard (port 8265 by default), and the network between."
        )


@dataclass(eq=False)
class RayAddressError(PermanentError):
    """What answers at the address is not Ray's Jobs API, or the address is none."""

    address: str
    problem: str

    def __str__(self) -> str:
        return (
            f"{self.address!r} is not the Jobs API of a Ray cluster: {self.problem}. Give the address of the "
            "dashboard, such as http://head:8265; ray[default] has to be installed on the head."
        )


@dataclass(eq=False)
class RayAccessError(PermanentError):
    """The cluster refuses the token."""

    address: str
    request: str
    problem: str

    def __str__(self) -> str:
        return (
            f"Ray cluster {self.address} refuses {self.request}: {self.problem}. Check that the token of the "
            "connection is the cluster's RAY_AUTH_TOKEN."
        )


@dataclass(eq=False)
class RayRefusedError(PermanentError):
    """The cluster understood the request and will not do it."""

    address: str
    request: str
    problem: str

    def __str__(self) -> str:
        return f"Ray cluster {self.address} will not do {self.request}: {self.problem}. Change what is asked for."


@dataclass(eq=False)
class ForeignRayJobError(PermanentError):
    """A job with our id was submitted by somebody else."""

    address: str
    job: str

    def __str__(self) -> str:
        return (
            f"Ray cluster {self.address} has a job {self.job} that deepseek-ops did not submit; delete it there "
            f"(ray job delete {self.job}) or give the training another name."
        )


@dataclass(eq=False)
class UnsealedSecretsError(PermanentError):
    """There are secrets to send and no key to seal them with."""

    names: tuple[str, ...]
    key_variable: str

    def __str__(self) -> str:
        return (
            f"secrets {', '.join(self.names)} would be readable by everybody who can open the Ray dashboard. Give the "
            f"connection a seal key and start every node of the cluster with the same one in {self.key_variable}, or "
            "give the nodes these variables themselves (instance role, Kubernetes secret) and name them in "
            "`cluster_provides`."
        )


@dataclass(eq=False)
class SealBrokenError(PermanentError):
    """Sealed secrets cannot be opened here."""

    job: str
    problem: str

    def __str__(self) -> str:
        return f"the secrets of job {self.job} cannot be opened: {self.problem}."
