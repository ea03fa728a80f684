"""``python -m deepseek_ops.jobs.secret_entry COMMAND...``: fetch the job's secrets, then become the command.

For engines that show a job's variables to everybody who may look. The secret is named by ``DEEPSEEK_OPS_SECRET_ARN``
and read from AWS Secrets Manager with the rights of the machine's role; its JSON object becomes variables.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deepseek_ops.adapters.engines.sagemaker.asking import SECRET_VARIABLE
from deepseek_ops.adapters.engines.sagemaker.clients import asked
from deepseek_ops.core.errors import DeepSeekOpsError, MissingDependencyError, PermanentError, TransientError
from deepseek_ops.core.jobs import EXIT_DO_NOT_RETRY, EXIT_RETRY


@dataclass(eq=False)
class BadSecretError(PermanentError):
    """The secret's name or content is not what the engine writes."""

    variable: str
    problem: str

    def __str__(self) -> str:
        return f"{self.variable}: {self.problem}; submit the job again, it gets a new secret."


def fetch(arn: str) -> dict[str, str]:
    """Return the variables that the secret holds. Raises BadSecretError and the errors of ``asked``."""
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise MissingDependencyError("boto3", "amazon", "reading a job's secrets") from error
    parts = arn.split(":")
    if len(parts) < 7 or parts[2] != "secretsmanager":
        raise BadSecretError(SECRET_VARIABLE, "is no ARN of a secret")
    bounded = Config(retries={"mode": "standard", "max_attempts": 8})
    client = boto3.client("secretsmanager", region_name=parts[3], config=bounded)
    answer = asked(f"read secret {arn}", lambda: client.get_secret_value(SecretId=arn))
    try:
        body = json.loads((answer or {})["SecretString"])
    except (ValueError, KeyError):
        raise BadSecretError(SECRET_VARIABLE, "names a secret that is no JSON") from None
    if not isinstance(body, dict):
        raise BadSecretError(SECRET_VARIABLE, "names a secret that is no JSON object")
    return {str(name): str(value) for name, value in body.items()}


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the command's variables: those of this process with the secrets, and without the secret's name."""
    found = dict(environment)
    arn = found.pop(SECRET_VARIABLE, "")
    return found | fetch(arn) if arn else found


def main(command: Sequence[str] | None = None) -> int:  # noqa: RET503  (the last call does not return)
    """Become the command; return 75 (try again) or 78 (do not) when there are no secrets to be had."""
    words = list(sys.argv[1:] if command is None else command)
    try:
        environment = variables(os.environ)
    except DeepSeekOpsError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return EXIT_RETRY if isinstance(error, TransientError) else EXIT_DO_NOT_RETRY
    os.execvpe(words[0], words, environment)  # noqa: S606  (an argument list, and no shell in between)


if __name__ == "__main__":
    sys.exit(main())
