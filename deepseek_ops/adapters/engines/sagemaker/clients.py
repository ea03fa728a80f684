"""The parts of boto3's clients that the engine calls, and what their errors mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar

from deepseek_ops.adapters.engines.sagemaker.errors import (
    SageMakerAccessError,
    SageMakerRefusedError,
    SageMakerUnavailableError,
)
from deepseek_ops.core.errors import MissingDependencyError

T = TypeVar("T")
_AWAY = frozenset(
    {
        "InternalFailure",
        "InternalServerError",
        "InternalServiceError",
        "RequestLimitExceeded",
        "RequestTimeout",
        "ResourceLimitExceeded",
        "ServiceUnavailable",
        "ServiceUnavailableException",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)
_ACCESS = frozenset(
    {
        "AccessDenied",
        "AccessDeniedException",
        "ExpiredToken",
        "ExpiredTokenException",
        "InvalidClientTokenId",
        "InvalidSignatureException",
        "OptInRequired",
        "SignatureDoesNotMatch",
        "UnrecognizedClientException",
    }
)
CLIENT_CONFIG: Mapping[str, object] = {
    "connect_timeout": 10,
    "read_timeout": 30,
    "retries": {"mode": "standard", "max_attempts": 5},
}
"""What every client is bounded by: a task that waits for an answer holds a worker."""
Answer = Mapping[str, object]


class SageMakerCalls(Protocol):
    """A ``boto3.client("sagemaker")``."""

    def create_training_job(self, **request: object) -> Answer: ...
    def describe_training_job(self, **request: object) -> Answer: ...
    def stop_training_job(self, **request: object) -> Answer: ...
    def list_training_jobs(self, **request: object) -> Answer: ...


class SecretCalls(Protocol):
    """A ``boto3.client("secretsmanager")``."""

    def create_secret(self, **request: object) -> Answer: ...
    def describe_secret(self, **request: object) -> Answer: ...
    def delete_secret(self, **request: object) -> Answer: ...


class LogCalls(Protocol):
    """A ``boto3.client("logs")``."""

    def describe_log_streams(self, **request: object) -> Answer: ...
    def get_log_events(self, **request: object) -> Answer: ...


@dataclass(frozen=True, slots=True)
class AwsClients:
    """Of one account and region."""

    sagemaker: SageMakerCalls
    secrets: SecretCalls
    logs: LogCalls
    region: str


def open_clients(region: str = "") -> AwsClients:
    """Return clients with the credentials of this process; nothing is contacted yet. Raises MissingDependencyError."""
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise MissingDependencyError("boto3", "amazon", "running jobs on SageMaker") from error
    session = boto3.Session(region_name=region or None)
    bounded = Config(**CLIENT_CONFIG)
    return AwsClients(
        sagemaker=session.client("sagemaker", config=bounded),
        secrets=session.client("secretsmanager", config=bounded),
        logs=session.client("logs", config=bounded),
        region=session.region_name,
    )


def asked(what: str, ask: Callable[[], T], *, otherwise: tuple[str, ...] = ()) -> T | None:
    """Return the answer; None for an error whose code, or the beginning of whose message, is in ``otherwise``."""
    from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, ParamValidationError

    try:
        return ask()
    except ClientError as error:
        found = error.response.get("Error", {})
        code, message = str(found.get("Code", "")), str(found.get("Message", "") or error)
        if code in otherwise or any(message.startswith(begin) for begin in otherwise):
            return None
        problem = f"{code}: {message}"[:500]
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        if code in _AWAY or status >= 500 or status == 429:
            raise SageMakerUnavailableError(what, problem) from None
        if code in _ACCESS:
            raise SageMakerAccessError(what, problem) from None
        raise SageMakerRefusedError(what, problem) from None
    except ParamValidationError as error:
        raise SageMakerRefusedError(what, " ".join(str(error).split())[:500]) from None
    except NoCredentialsError as error:
        raise SageMakerAccessError(what, str(error)) from None
    except BotoCoreError as error:  # no connection, a time-out, an answer that is cut
        raise SageMakerUnavailableError(what, str(error)[:500]) from None
