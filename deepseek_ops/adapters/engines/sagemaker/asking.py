"""What SageMaker is asked to create for a job. Pure.

No input channels, no output of ours, no ``CheckpointConfig``: data and checkpoints go through our own store, which the
machines reach by the jobs' role. No ``RetryStrategy``: another attempt is ours to begin.
"""

from __future__ import annotations

import hashlib
import math
import re

from deepseek_ops.adapters.engines.sagemaker.errors import SageMakerRefusedError
from deepseek_ops.adapters.engines.sagemaker.settings import SageMakerSettings
from deepseek_ops.core.jobs import EngineJob

ID_VARIABLE = "DEEPSEEK_OPS_ENGINE_ID"
SECRET_VARIABLE = "DEEPSEEK_OPS_SECRET_ARN"  # noqa: S105  (the name of a variable)
MAX_VARIABLES = 100
MAX_VALUE = 512
MAX_WORD = 256
GRACE_SECONDS = 120
"""SageMaker's own between SIGTERM and SIGKILL; no request changes it."""
_NAME = 63
_DIGEST = 10
SECRET_ENTRY = "deepseek_ops.jobs.secret_entry"  # noqa: S105  (a module)


def training_job_name(job: str, prefix: str) -> str:
    """Return the name of a job's training job: letters, digits and hyphens, at most 63, different for other ids."""
    tail = hashlib.sha256(job.encode()).hexdigest()[:_DIGEST]
    room = _NAME - len(prefix) - _DIGEST - 2
    slug = re.sub(r"[^a-zA-Z0-9]+", "-", job).strip("-")[:room].strip("-")
    return f"{prefix}-{slug}-{tail}"


def request(job: EngineJob, settings: SageMakerSettings, *, secret_arn: str = "") -> dict[str, object]:
    """Return the arguments of CreateTrainingJob. Raises SageMakerRefusedError for what the API could not carry."""
    name = training_job_name(job.id, settings.prefix)
    image = job.image or settings.image
    if not image:
        raise SageMakerRefusedError(f"create {name}", "no image: set `image` in the machine's shape or in the options")
    body: dict[str, object] = {
        "TrainingJobName": name,
        "RoleArn": settings.role_arn,
        "AlgorithmSpecification": {
            "TrainingImage": image,
            "TrainingInputMode": "File",
            **_command(job, name, secret_arn),
        },
        "OutputDataConfig": {"S3OutputPath": settings.output_uri},
        "ResourceConfig": _machines(job, settings),
        "StoppingCondition": _limits(job, settings),
        "EnableManagedSpotTraining": settings.spot,
        "EnableInterContainerTrafficEncryption": settings.encrypt_traffic,
        "Environment": _variables(job, settings, name, secret_arn),
        "Tags": [{"Key": key, "Value": value} for key, value in sorted(_tags(settings).items())],
    }
    if settings.subnets:
        body["VpcConfig"] = {"Subnets": list(settings.subnets), "SecurityGroupIds": list(settings.security_groups)}
    return body


def _command(job: EngineJob, name: str, secret_arn: str) -> dict[str, list[str]]:
    words = list(job.command)
    if secret_arn:  # an entry that fetches the secrets by the jobs' role and becomes the command
        words = [words[0], "-m", SECRET_ENTRY, *words]
    for word in words:
        if len(word) > MAX_WORD:
            raise SageMakerRefusedError(f"create {name}", f"an argument is longer than {MAX_WORD} characters: {word!r}")
    command = {"ContainerEntrypoint": words[:1]}
    if words[1:]:
        command["ContainerArguments"] = words[1:]
    return command


def _machines(job: EngineJob, settings: SageMakerSettings) -> dict[str, object]:
    machines: dict[str, object] = {
        "InstanceType": settings.instance_type,
        "InstanceCount": job.num_nodes,
        "VolumeSizeInGB": settings.volume_gib,
    }
    if settings.volume_kms_key:
        machines["VolumeKmsKeyId"] = settings.volume_kms_key
    return machines


def _limits(job: EngineJob, settings: SageMakerSettings) -> dict[str, int]:
    runtime = min(math.ceil(job.timeout_seconds), settings.max_runtime_seconds)
    limits = {"MaxRuntimeInSeconds": runtime}
    if settings.spot:
        limits["MaxWaitTimeInSeconds"] = runtime + settings.max_wait_seconds
    elif settings.max_pending_seconds is not None:
        limits["MaxPendingTimeInSeconds"] = settings.max_pending_seconds
    return limits


def _variables(job: EngineJob, settings: SageMakerSettings, name: str, secret_arn: str) -> dict[str, str]:
    found = {**settings.environment, **job.environment, ID_VARIABLE: job.id}
    if secret_arn:
        found[SECRET_VARIABLE] = secret_arn
    if len(found) > MAX_VARIABLES:
        raise SageMakerRefusedError(f"create {name}", f"{len(found)} variables are more than {MAX_VARIABLES}")
    for key, value in found.items():
        if len(value) > MAX_VALUE:
            raise SageMakerRefusedError(f"create {name}", f"variable {key} is longer than {MAX_VALUE} characters")
    return found


def _tags(settings: SageMakerSettings) -> dict[str, str]:
    return {**settings.tags, "deepseek-ops": settings.prefix}
