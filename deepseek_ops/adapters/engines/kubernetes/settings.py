"""What somebody who runs a Kubernetes cluster says about it once: what kind of job, where, and with which rights."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, StringConstraints, model_validator

from deepseek_ops.core.records import Record

Label = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
"""A DNS-1123 label."""
ObjectName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Quantity = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)?(m|[kMGTPE]|[KMGTPE]i)?$")]
RUNTIME_KINDS = Literal["TrainingRuntime", "ClusterTrainingRuntime"]


class KubernetesSettings(Record):
    """One cluster and namespace: the extra of an Airflow connection, or a section of a file. Nothing is secret."""

    kind: Literal["jobset", "trainjob"] = "jobset"
    namespace: Label = "default"
    installation: Label = Field(default="deepseek-ops", description="Label of our objects: one for each installation.")
    context: str = Field(default="", description="Context of the kubeconfig; empty = its current one.")
    ca_file: str = Field(default="", description="CA bundle of an API server that is given by its address.")
    timeout_seconds: float = Field(default=30.0, gt=0, description="For one request.")

    queue: Label | Literal[""] = Field(default="", description="Kueue's LocalQueue; empty = no Kueue.")
    priority_class: ObjectName | Literal[""] = Field(default="", description="Kueue's WorkloadPriorityClass.")
    kueue_version: Literal["v1beta1", "v1beta2"] = "v1beta1"
    runtime: ObjectName = Field(default="deepseek-ops", description="Of TrainJobs: the runtime they refer to.")
    runtime_kind: RUNTIME_KINDS = "TrainingRuntime"
    ttl_seconds: int = Field(default=7 * 86400, ge=0, description="Of JobSets: kept so long after their end.")

    image: str = Field(default="", description="Container image of jobs that name none.")
    image_pull_policy: Literal["", "Always", "IfNotPresent", "Never"] = ""
    image_pull_secrets: tuple[ObjectName, ...] = ()
    service_account: ObjectName | Literal[""] = Field(default="", description="Of the pods; its token is not mounted.")
    node_selector: dict[str, str] = Field(default_factory=dict)
    tolerations: tuple[dict[str, JsonValue], ...] = ()
    gpu_resource: str = Field(default="nvidia.com/gpu", description="Name of a GPU among the resources of a node.")
    extra_resources: dict[str, Quantity] = Field(
        default_factory=dict, description="Per node, such as rdma/ib: '1'; requests and limits."
    )
    shared_memory: Quantity = Field(default="16Gi", description="Size of /dev/shm, which counts as memory of the pod.")
    scratch: Quantity | Literal[""] = Field(default="", description="Limit of the scratch folder on the node's disk.")
    volumes: tuple[dict[str, JsonValue], ...] = Field(default=(), description="More volumes, as in a pod's spec.")
    volume_mounts: tuple[dict[str, JsonValue], ...] = Field(default=(), description="Where these are mounted.")
    environment: dict[Variable, str] = Field(
        default_factory=dict, description="Variables of every job on this cluster; the job's own win."
    )
    run_as_user: int = Field(default=1000, ge=1, description="User of the processes; never root.")
    capabilities: tuple[str, ...] = Field(default=(), description="Added to none, such as IPC_LOCK for RDMA.")

    @model_validator(mode="after")
    def _mounted(self) -> KubernetesSettings:
        named = {str(volume.get("name")) for volume in self.volumes}
        for mount in self.volume_mounts:
            if str(mount.get("name")) not in named:
                raise ValueError(f"volume_mounts: {mount.get('name')!r} is none of the volumes {sorted(named)}.")
        return self
