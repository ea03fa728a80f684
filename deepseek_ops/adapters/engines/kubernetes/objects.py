"""The objects that a job is in Kubernetes: a JobSet or a TrainJob, and the pods they make. Pure.

Decisions:

- **Kubernetes starts nothing twice.** No restarts of containers, pods, Jobs or JobSets: another attempt is ours, with
  a fencing token of its own. A disrupted pod (preemption, eviction, drained or lost node) fails the whole job at once.
- **Node 0 has an address before it runs**: an Indexed Job behind JobSet's headless service gives every pod the name
  ``<job>-node-0-<index>.<job>``, which the pods of a TrainJob have as well.
- **No secret is in the object**: variables refer to keys of a Secret that the job owns.
- **Nothing of the cluster is in the pod**: no root, no privileges, no token of a service account.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection

from pydantic import JsonValue

from deepseek_ops.adapters.engines.kubernetes.bodies import Body
from deepseek_ops.adapters.engines.kubernetes.errors import NoImageError
from deepseek_ops.adapters.engines.kubernetes.settings import KubernetesSettings
from deepseek_ops.core.jobs import EngineJob

MANAGED_BY = "app.kubernetes.io/managed-by"
US = "deepseek-ops"
INSTALLATION = "deepseek-ops/installation"
JOB_ID = "deepseek-ops/id"
"""Annotation: ids are longer than a label may be."""
OBJECT = "deepseek-ops/object"
"""Label of the pods: the name of their job's object."""
QUEUE = "kueue.x-k8s.io/queue-name"
PRIORITY = "kueue.x-k8s.io/priority-class"
NODE = "node"
"""Name of the replicated job and of its container; Kubeflow Trainer knows the trainer by it."""
INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
RUN = "metadata.labels['batch.kubernetes.io/controller-uid']"
SCRATCH = "/scratch"
_SLUG = 29
_DIGEST = 10


def object_name(job: str) -> str:
    """Return the name of a job's object: at most 40 characters, a DNS-1035 label, different for different ids.

    JobSet makes names of pods from it: ``-node-0-``, five digits and a random suffix have to fit into 63 characters.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", job.lower()).strip("-")[:_SLUG].strip("-")
    if not slug[:1].isalpha():
        slug = f"j{slug}"[:_SLUG]
    return f"{slug}-{hashlib.sha256(job.encode()).hexdigest()[:_DIGEST]}"


def labels(settings: KubernetesSettings) -> Body:
    return {MANAGED_BY: US, INSTALLATION: settings.installation}


def selector(settings: KubernetesSettings) -> str:
    return ",".join(f"{key}={value}" for key, value in labels(settings).items())


def manifest(job: EngineJob, settings: KubernetesSettings, secrets: Collection[str] = ()) -> Body:
    """Return the object of a job. ``secrets`` are the names of its secret variables.

    Raises NoImageError.
    """
    image = job.image or settings.image
    if not image:
        raise NoImageError(job.id)
    marks = labels(settings)
    if settings.queue:
        marks[QUEUE] = settings.queue
        if settings.priority_class:
            marks[PRIORITY] = settings.priority_class
    metadata: Body = {"name": object_name(job.id), "labels": marks, "annotations": {JOB_ID: job.id}}
    if settings.kind == "jobset":
        return {
            "apiVersion": "jobset.x-k8s.io/v1alpha2",
            "kind": "JobSet",
            "metadata": metadata,
            "spec": _jobset(job, settings, secrets, image),
        }
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": metadata,
        "spec": _trainjob(job, settings, secrets, image),
    }


def _jobset(job: EngineJob, settings: KubernetesSettings, secrets: Collection[str], image: str) -> Body:
    container: Body = {
        "name": NODE,
        "image": image,
        "command": list(job.command),
        "env": _variables(job, settings, secrets),
        "resources": _resources(job, settings),
        "securityContext": _container_security(settings),
        "volumeMounts": _mounts(settings),
    }
    if settings.image_pull_policy:
        container["imagePullPolicy"] = settings.image_pull_policy
    pod: Body = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        **_pod(job, settings),
        "containers": [container],
    }
    template: Body = {"metadata": _pod_metadata(job, settings), "spec": pod}
    work: Body = {
        "completionMode": "Indexed",
        "completions": job.num_nodes,
        "parallelism": job.num_nodes,
        "backoffLimit": 0,
        "activeDeadlineSeconds": math.ceil(job.timeout_seconds),
        "podFailurePolicy": {
            "rules": [{"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}]
        },
        "template": template,
    }
    return {
        "suspend": bool(settings.queue),
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
        "failurePolicy": {"maxRestarts": 0},
        "ttlSecondsAfterFinished": settings.ttl_seconds,
        "replicatedJobs": [{"name": NODE, "replicas": 1, "template": {"spec": work}}],
    }


def _trainjob(job: EngineJob, settings: KubernetesSettings, secrets: Collection[str], image: str) -> Body:
    container: Body = {
        "name": NODE,
        "securityContext": _container_security(settings),
        "volumeMounts": _mounts(settings),
    }
    pod: Body = {"metadata": _pod_metadata(job, settings), "spec": {**_pod(job, settings), "containers": [container]}}
    patch: Body = {"name": NODE, "template": {"spec": {"template": pod}}}
    return {
        "runtimeRef": {
            "apiGroup": "trainer.kubeflow.org",
            "kind": settings.runtime_kind,
            "name": settings.runtime,
        },
        "suspend": bool(settings.queue),
        "activeDeadlineSeconds": math.ceil(job.timeout_seconds),
        "trainer": {
            "image": image,
            "command": list(job.command),
            "env": _variables(job, settings, secrets),
            "numNodes": job.num_nodes,
            "numProcPerNode": job.ranks_per_node,
            "resourcesPerNode": _resources(job, settings),
        },
        "runtimePatches": [
            {
                "manager": "deepseek-ops/engine",
                "trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [patch]}}},
            }
        ],
    }


def _pod_metadata(job: EngineJob, settings: KubernetesSettings) -> Body:
    return {"labels": {**labels(settings), OBJECT: object_name(job.id)}, "annotations": {JOB_ID: job.id}}


def _pod(job: EngineJob, settings: KubernetesSettings) -> Body:
    """Return what a pod's spec and a patch of a runtime's pods have in common."""
    scratch: Body = {"sizeLimit": settings.scratch} if settings.scratch else {}
    pod: Body = {
        "terminationGracePeriodSeconds": max(1, math.ceil(job.grace_seconds)),
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": settings.run_as_user,
            "fsGroup": settings.run_as_user,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [
            {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": settings.shared_memory}},
            {"name": "scratch", "emptyDir": scratch},
            *settings.volumes,
        ],
    }
    if settings.service_account:
        pod["serviceAccountName"] = settings.service_account
    if settings.node_selector:
        pod["nodeSelector"] = dict(settings.node_selector)
    if settings.tolerations:
        pod["tolerations"] = list(settings.tolerations)
    if settings.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in settings.image_pull_secrets]
    return pod


def _mounts(settings: KubernetesSettings) -> list[JsonValue]:
    return [
        {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108  (torch's ranks exchange data there)
        {"name": "scratch", "mountPath": SCRATCH},
        *settings.volume_mounts,
    ]


def _container_security(settings: KubernetesSettings) -> Body:
    capabilities: Body = {"drop": ["ALL"]}
    if settings.capabilities:
        capabilities["add"] = list(settings.capabilities)
    return {"allowPrivilegeEscalation": False, "capabilities": capabilities}


def _resources(job: EngineJob, settings: KubernetesSettings) -> Body:
    """Return what a node needs. CPU is asked for and not limited: a throttled rank holds all others up."""
    limits: Body = dict(settings.extra_resources)
    if job.memory_bytes is not None:
        limits["memory"] = str(job.memory_bytes)
    if job.gpus_per_node:
        limits[settings.gpu_resource] = str(job.gpus_per_node)
    return {"requests": {"cpu": str(job.cpus_per_node), **limits}, "limits": limits}


def _variables(job: EngineJob, settings: KubernetesSettings, secrets: Collection[str]) -> list[JsonValue]:
    """Return the container's variables: where the node is, then what the job says, then what its Secret has.

    ``$`` is doubled, because Kubernetes expands ``$(NAME)`` in values.
    """
    name = object_name(job.id)
    ours: list[JsonValue] = [
        {"name": "DEEPSEEK_OPS_NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": INDEX}}},
        {"name": "DEEPSEEK_OPS_NODE_INSTANCE", "valueFrom": {"fieldRef": {"fieldPath": RUN}}},
        {"name": "DEEPSEEK_OPS_NODE_COUNT", "value": str(job.num_nodes)},
        {"name": "DEEPSEEK_OPS_NODE_ADDRESS", "value": f"{name}-{NODE}-0-0.{name}"},
        {"name": "DEEPSEEK_OPS_NODE_HOST", "value": f"{name}-{NODE}-0-$(DEEPSEEK_OPS_NODE_RANK).{name}"},
    ]
    plain = {
        "DEEPSEEK_OPS_SCRATCH": SCRATCH,
        "HOME": SCRATCH,  # a user without an entry in the image's passwd has / as its home, and caches go there
        **settings.environment,
        **job.environment,
    }
    taken = {"DEEPSEEK_OPS_NODE_" + word for word in ("RANK", "INSTANCE", "COUNT", "ADDRESS", "HOST")}
    for key, value in sorted(plain.items()):
        if key not in secrets and key not in taken:
            ours.append({"name": key, "value": value.replace("$", "$$")})
    sealed: list[JsonValue] = [
        {"name": key, "valueFrom": {"secretKeyRef": {"name": name, "key": key}}} for key in sorted(secrets)
    ]
    return ours + sealed
