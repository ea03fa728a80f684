"""What somebody who runs trainings on SageMaker says about it once."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints, model_validator

from deepseek_ops.core.records import Record

Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
NamePart = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9](-*[a-zA-Z0-9]){0,15}$")]


class SageMakerSettings(Record):
    """One account and region: the extra of an Airflow connection, or a section of a file. Nothing is secret."""

    region: str = Field(default="", description="Empty = the one of the credentials.")
    role_arn: str = Field(pattern=r"^arn:aws[a-z-]*:iam::\d{12}:role/\S+$", description="What the jobs run as.")
    output_uri: str = Field(pattern=r"^(s3|https)://\S+$", description="SageMaker wants one; we write nothing there.")
    instance_type: str = Field(pattern=r"^ml\.[a-z0-9-]+\.[a-z0-9]+$", examples=["ml.p5.48xlarge"])
    volume_gib: int = Field(default=500, ge=1, description="Of each machine; types with disks of their own ignore it.")
    image: str = Field(default="", description="Container image (ECR) of jobs that name none.")
    prefix: NamePart = Field(default="dso", description="Begins the name of each job: one for each installation.")

    spot: bool = Field(default=False, description="Managed spot instances.")
    max_wait_seconds: int = Field(default=4 * 3600, ge=0, description="For spot capacity, on top of the job's limit.")
    max_pending_seconds: int | None = Field(
        default=None, ge=7200, le=2_419_200, description="For on-demand capacity, where the instance type allows it."
    )
    max_runtime_seconds: int = Field(
        default=5 * 86400, ge=1, le=28 * 86400, description="Longest job the account allows; a longer one comes back."
    )
    subnets: tuple[str, ...] = ()
    security_groups: tuple[str, ...] = ()
    encrypt_traffic: bool = Field(default=False, description="Between the machines of a job; costs speed.")
    volume_kms_key: str = ""
    tags: dict[str, str] = Field(default_factory=dict)
    environment: dict[Variable, str] = Field(
        default_factory=dict, description="Variables of every job; the job's own win."
    )
    secret_prefix: str = Field(
        default="", pattern=r"^[\w/+=.@-]*$", description="Below it a job's secrets are kept in Secrets Manager."
    )
    secret_kms_key: str = ""
    role_provides: tuple[Variable, ...] = Field(
        default=(), description="Secrets that are not sent, because the jobs' role gives what they would open."
    )

    @model_validator(mode="after")
    def _network(self) -> SageMakerSettings:
        if bool(self.subnets) != bool(self.security_groups):
            raise ValueError("subnets and security_groups belong together: give both or neither.")
        return self
