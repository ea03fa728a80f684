"""What an engine is asked to run for an attempt of a job."""

from __future__ import annotations

import hashlib
import secrets
import string

from pydantic import Field, field_validator

from deepseek_ops.adapters.remote_launcher.errors import NoEnvironmentError
from deepseek_ops.adapters.remote_launcher.layout import RemoteAttempt
from deepseek_ops.core.jobs import EngineJob, JobSpec
from deepseek_ops.core.records import Record

MARGIN_SECONDS = 300.0
"""By how much later than the job's own limit the engine's comes: the job ends itself, and says why."""
_NAME_CHARACTERS = 70
_TAG_CHARACTERS = 6


class NodeShape(Record):
    """What a job gets of each machine, and what runs there."""

    python: str = Field(default="python3", description="Interpreter of the jobs' environment on the machines.")
    cpus_per_rank: int = Field(default=1, ge=1)
    gpus_per_rank: int = Field(default=0, ge=0, description="Of train jobs.")
    memory_bytes: int | None = Field(default=None, gt=0, description="Per node.")
    image: str = Field(
        default="",
        description="Container image where the engine runs containers; {environment} in it is the run's short "
        "environment key, as in registry/trainer:{environment}.",
    )

    @field_validator("image")
    @classmethod
    def _known_placeholders(cls, value: str) -> str:
        try:
            found = [part[1:] for part in string.Formatter().parse(value) if part[1] is not None]
        except ValueError as error:
            raise ValueError(f"{error}; {{environment}} is the one placeholder") from None
        unknown = [name for name, form, how in found if (name, form, how) != ("environment", "", None)]
        if unknown:
            raise ValueError(f"{{{unknown[0]}}} is no placeholder; {{environment}} is the one there is")
        return value

    def image_for(self, spec: JobSpec) -> str:
        """Return the image of a job: of its environment where the name has a placeholder. Raises NoEnvironmentError."""
        if "{" in self.image and not spec.environment_key:
            raise NoEnvironmentError(spec.name, self.image)
        from deepseek_ops.adapters.environments.images import TAG_DIGITS

        return self.image.format(environment=(spec.environment_key or "")[:TAG_DIGITS])


def store_tag(uri: str) -> str:
    """Return what marks the engine's jobs of this store: an engine may serve several deployments."""
    return hashlib.sha256(uri.encode()).hexdigest()[:_TAG_CHARACTERS]


def new_engine_id(job: str, attempt: int, uri: str) -> str:
    """Return an id for the engine's job of an attempt that no earlier job of this name has had.

    It is drawn once and recorded with the attempt, so whoever finishes the attempt's start uses the same.
    """
    return f"{job[:_NAME_CHARACTERS]}-{attempt}-{store_tag(uri)}{secrets.token_hex(2)}"


def is_of_store(engine_id: str, uri: str) -> bool:
    """Return whether the engine's job was started for a job of this store."""
    mark = engine_id.rpartition("-")[2]
    return len(mark) == _TAG_CHARACTERS + 4 and mark.startswith(store_tag(uri))


def engine_job(record: RemoteAttempt, shape: NodeShape) -> EngineJob:
    """Return the engine's job that attends every node of the attempt."""
    spec = record.spec
    ranks = ranks_per_node(spec)
    return EngineJob(
        id=record.engine_id,
        command=(
            spec.python or shape.python,
            *("-m", "deepseek_ops.jobs", "attend"),
            *("--job", spec.name, "--attempt", str(record.attempt)),
        ),
        num_nodes=spec.num_nodes,
        min_nodes=spec.min_nodes,
        ranks_per_node=ranks,
        gpus_per_node=shape.gpus_per_rank * ranks if spec.kind == "train" else 0,
        cpus_per_node=shape.cpus_per_rank * ranks,
        memory_bytes=shape.memory_bytes,
        timeout_seconds=spec.timeout_seconds + spec.grace_seconds + MARGIN_SECONDS,
        grace_seconds=spec.grace_seconds,
        environment=spec.environment,
        image=shape.image_for(spec),
    )


def ranks_per_node(spec: JobSpec) -> int:
    """Return how many processes of a job share a node."""
    return spec.num_ranks if spec.kind == "train" else 1
