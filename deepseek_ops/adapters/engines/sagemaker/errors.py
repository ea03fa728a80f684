"""What can go wrong between us and SageMaker."""

from __future__ import annotations

from dataclasses import dataclass

from deepseek_ops.core.errors import PermanentError, TransientError


@dataclass(eq=False)
class SageMakerUnavailableError(TransientError):
    """AWS does not answer, asks us to slow down, or has no instance of this type for the account now."""

    request: str
    problem: str

    def __str__(self) -> str:
        return (
            f"SageMaker did not serve {self.request}: {self.problem}. It is tried again; for a limit of instances, end "
            "other jobs, ask for another instance type, or raise the quota of the account."
        )


@dataclass(eq=False)
class SageMakerAccessError(PermanentError):
    """The credentials are refused, or their rights do not suffice."""

    request: str
    problem: str

    def __str__(self) -> str:
        return (
            f"AWS refuses {self.request}: {self.problem}. Check the credentials, and that they may create, describe, "
            "list and stop training jobs, pass the jobs' role, and use the secrets below `secret_prefix`."
        )


@dataclass(eq=False)
class SageMakerRefusedError(PermanentError):
    """AWS understood the request and will not do it."""

    request: str
    problem: str

    def __str__(self) -> str:
        return f"SageMaker will not do {self.request}: {self.problem}. Change the value that is named."


@dataclass(eq=False)
class ForeignTrainingJobError(PermanentError):
    """A training job with the name of ours was created by somebody else."""

    name: str
    job: str

    def __str__(self) -> str:
        return (
            f"training job {self.name} is not the one that deepseek-ops would make for {self.job}; a name is "
            "never free again in an account, so give the training another one."
        )


@dataclass(eq=False)
class UnsentSecretsError(PermanentError):
    """There are secrets to send and nowhere to put them."""

    names: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"secrets {', '.join(self.names)} would be readable by everybody who may describe training jobs. Set "
            "`secret_prefix` to have them kept in Secrets Manager, or name them in `role_provides` where the jobs' "
            "role makes them needless."
        )
