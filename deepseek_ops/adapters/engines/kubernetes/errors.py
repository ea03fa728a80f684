"""What can go wrong between us and a Kubernetes cluster."""

from __future__ import annotations

from dataclasses import dataclass

from deepseek_ops.core.errors import PermanentError, TransientError


@dataclass(eq=False)
class KubernetesUnavailableError(TransientError):
    """The API server does not answer, is overloaded, or answers with a server error."""

    request: str
    problem: str

    def __str__(self) -> str:
        return (
            f"Kubernetes did not serve {self.request}: {self.problem}. Check that the API server is up "
            "(kubectl get --raw /readyz) and the network between."
        )


@dataclass(eq=False)
class KubernetesAccessError(PermanentError):
    """The API server refuses our identity, or its rights do not suffice; or there is no configuration at all."""

    request: str
    problem: str

    def __str__(self) -> str:
        return (
            f"Kubernetes refuses {self.request}: {self.problem}. Check the context and its credentials, and that the "
            "role of include/kubernetes/engine-role.yaml is bound to them in this namespace."
        )


@dataclass(eq=False)
class KubernetesRefusedError(PermanentError):
    """The API server understood the request and will not do it."""

    request: str
    problem: str

    def __str__(self) -> str:
        return (
            f"Kubernetes will not do {self.request}: {self.problem}. Check that the namespace exists, that the CRDs of "
            "JobSet or Kubeflow Trainer (and Kueue, for a queue) are installed in the version of the settings, and "
            "the value that is named."
        )


@dataclass(eq=False)
class ForeignObjectError(PermanentError):
    """An object with the name of ours was made by somebody else."""

    kind: str
    name: str
    job: str

    def __str__(self) -> str:
        return (
            f"{self.kind} {self.name} is not the one that deepseek-ops would make for job {self.job}; delete it "
            f"(kubectl delete {self.kind.lower()} {self.name}) or give the training another name."
        )


@dataclass(eq=False)
class NoImageError(PermanentError):
    """Neither the job nor the engine names a container image."""

    job: str

    def __str__(self) -> str:
        return f"job {self.job} has no container image: set `image` in the machine's shape, or in the engine's options."


@dataclass(eq=False)
class BadVariableNameError(PermanentError):
    """A secret's name cannot be that of a variable."""

    job: str
    name: str

    def __str__(self) -> str:
        return f"secret {self.name!r} of job {self.job} is no name of a variable: use letters, digits and underscores."
