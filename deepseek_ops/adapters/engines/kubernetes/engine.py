"""Kubernetes as an engine: a job is a JobSet, or a TrainJob of Kubeflow Trainer, which Kueue may hold back.

The API server accepts one object of a name, so a second start finds the first. Two small objects stand beside a job:
its Secret, which the job owns and takes along, and, once it was cancelled, a ConfigMap that remembers it. Kubernetes
forgets what it deletes, and a job that somebody cancelled must not come back by the next start.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deepseek_ops.adapters.engines.kubernetes.api import (
    CONFIG_MAPS,
    JOBS,
    JOBSETS,
    PODS,
    SECRETS,
    TRAINJOBS,
    KubernetesApi,
    Resource,
)
from deepseek_ops.adapters.engines.kubernetes.bodies import Body, part, text
from deepseek_ops.adapters.engines.kubernetes.errors import (
    BadVariableNameError,
    ForeignObjectError,
    KubernetesUnavailableError,
)
from deepseek_ops.adapters.engines.kubernetes.objects import (
    INSTALLATION,
    JOB_ID,
    MANAGED_BY,
    NODE,
    OBJECT,
    US,
    labels,
    manifest,
    object_name,
    selector,
)
from deepseek_ops.adapters.engines.kubernetes.reading import (
    Seen,
    engine_state,
    evicted,
    first_failure,
    index_of,
    is_failed,
    is_suspended,
)
from deepseek_ops.adapters.engines.kubernetes.settings import KubernetesSettings
from deepseek_ops.core.jobs import EngineJob, EnginePhase, EngineState

log = logging.getLogger(__name__)

TAIL_BYTES = 16 << 10
JOB_UID = "kueue.x-k8s.io/job-uid"
JOBSET_NAME = "jobset.sigs.k8s.io/jobset-name"
PHASE, REASON = "phase", "reason"
_VARIABLE = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")


class KubernetesEngine:
    """Jobs of one installation in one namespace.

    Args:
        api: The namespace, see ``open_client``.
        settings: What the cluster is used with.
    """

    def __init__(self, api: KubernetesApi, settings: KubernetesSettings) -> None:
        self._api = api
        self._settings = settings
        self._resource = JOBSETS if settings.kind == "jobset" else TRAINJOBS
        self._workloads = Resource("kueue.x-k8s.io", settings.kueue_version, "workloads")

    def start(self, job: EngineJob, *, secrets: Mapping[str, str] | None = None) -> EngineState:
        """Create the job unless there is one of its id, and return its state.

        A start that died between the job and its Secret is finished by the next one: the pods wait for the Secret.

        Raises ForeignObjectError, NoImageError, BadVariableNameError and the errors of the API.
        """
        given = dict(secrets or {})
        for name in given:
            if not _VARIABLE.match(name):
                raise BadVariableNameError(job.id, name)
        top = self._get(job.id)
        if top is None:
            ended = self._remembered(job.id)
            if ended is not None:
                return ended
            if self._api.create(self._resource, manifest(job, self._settings, given)):
                log.info("kubernetes: created %s %s for %s", self._resource.plural, object_name(job.id), job.id)
            top = self._get(job.id)
            if top is None:
                raise KubernetesUnavailableError(f"start of {job.id}", "it was deleted while it was being started")
        state = self._told(top)
        if given and not state.settled and not text(top, "metadata", "deletionTimestamp"):
            self._give(top, given)
        return state

    def state(self, name: str) -> EngineState | None:
        """Return the job's state. One that Kueue evicted is withdrawn, so that Kueue does not start it again."""
        top = self._get(name)
        return self._remembered(name) if top is None else self._told(top)

    def cancel(self, name: str, *, grace_seconds: float) -> None:
        """Have the job's processes told by SIGTERM, killed after the grace, and the job deleted; returns at once.

        The grace can be shorter than the one the job started with, not longer, and at least 1 s: 0 would mean to
        forget the pods without knowing that they have ended.
        """
        top = self._get(name)
        if top is None or engine_state(Seen(top), where="").settled:
            return
        pods = self._pods_of(object_name(name))
        self._withdraw(name, top, EnginePhase.CANCELLED, "it was cancelled")
        for pod in pods:
            if text(pod, "status", "phase") in ("Pending", "Running"):
                grace = max(1, min(math.ceil(grace_seconds), _grace_of(pod)))
                self._api.delete(PODS, text(pod, "metadata", "name"), uid=_uid(pod), grace_seconds=grace)

    def retire(self, name: str) -> None:
        """Delete a settled job, its pods with their output, its Secret, and the memory of its cancelling."""
        top = self._get(name)
        if top is not None:
            if not self._told(top).settled:
                return
            self._api.delete(self._resource, object_name(name), uid=_uid(top))
        memory = self._memory(name)
        if memory is not None:
            self._api.delete(CONFIG_MAPS, object_name(name), uid=_uid(memory))

    def tail(self, name: str) -> str:
        """Return the end of the output of the pod that failed first, or of node 0."""
        if self._get(name) is None:
            return ""
        pods = self._pods_of(object_name(name))
        pod = first_failure(pods) or min(pods, key=index_of, default=None)
        return "" if pod is None else self._api.log(text(pod, "metadata", "name"), NODE, num_bytes=TAIL_BYTES)

    def list(self) -> list[EngineState]:
        """Return the jobs of this installation, with those that were cancelled: four or five requests in all."""
        chosen = selector(self._settings)
        tops = [top for top in self._api.list(self._resource, chosen) if text(top, "metadata", "annotations", JOB_ID)]
        found = _Children.of(self._api.list(PODS, chosen), OBJECT)
        jobs, workloads = _Children(), _Children()
        if any(is_failed(top) for top in tops):
            jobs = _Children.of(self._api.list(JOBS, JOBSET_NAME), JOBSET_NAME)
        if self._settings.queue and any(is_suspended(top) for top in tops):
            workloads = _Children.of(self._api.list(self._workloads, JOB_UID), JOB_UID)
        states = [self._state(Seen(top, found[_name(top)], jobs[_name(top)], workloads[_uid(top)])) for top in tops]
        living = {state.id for state in states}
        memories = [_recalled(memory, self._api.where) for memory in self._api.list(CONFIG_MAPS, chosen)]
        return states + [state for state in memories if state is not None and state.id not in living]

    # --- looking ------------------------------------------------------------------------------------------------------

    def _get(self, job: str) -> Body | None:
        """Return the job's object. Raises ForeignObjectError for one that is not ours."""
        name = object_name(job)
        found = self._api.get(self._resource, name)
        if found is None:
            return None
        if not self._is_ours(found, job):
            raise ForeignObjectError("JobSet" if self._resource == JOBSETS else "TrainJob", name, job)
        return found

    def _is_ours(self, found: Body, job: str) -> bool:
        marks = part(found, "metadata", "labels")
        ours = marks.get(MANAGED_BY) == US and marks.get(INSTALLATION) == self._settings.installation
        return ours and text(found, "metadata", "annotations", JOB_ID) == job

    def _told(self, top: Body) -> EngineState:
        name = _name(top)
        jobs = self._api.list(JOBS, f"{JOBSET_NAME}={name}") if is_failed(top) else []
        workloads: Sequence[Body] = []
        if self._settings.queue and is_suspended(top):
            workloads = self._api.list(self._workloads, f"{JOB_UID}={_uid(top)}")
        seen = Seen(top, self._pods_of(name), jobs, workloads)
        state = self._state(seen)
        if state.phase is EnginePhase.PREEMPTED and evicted(seen) and not is_failed(top):
            self._withdraw(state.id, top, state.phase, state.reason)
        return state

    def _state(self, seen: Seen) -> EngineState:
        return engine_state(seen, where=self._api.where)

    def _pods_of(self, name: str) -> Sequence[Body]:
        return self._api.list(PODS, f"{OBJECT}={name}")

    def _memory(self, job: str) -> Body | None:
        found = self._api.get(CONFIG_MAPS, object_name(job))
        return found if found is not None and self._is_ours(found, job) else None

    def _remembered(self, job: str) -> EngineState | None:
        memory = self._memory(job)
        return None if memory is None else _recalled(memory, self._api.where)

    # --- acting -------------------------------------------------------------------------------------------------------

    def _withdraw(self, job: str, top: Body, phase: EnginePhase, reason: str) -> None:
        """Remember how the job ended, then delete it. Whoever dies in between is finished by the next who looks."""
        memory: Body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": object_name(job), "labels": labels(self._settings), "annotations": {JOB_ID: job}},
            "data": {PHASE: str(phase), REASON: reason[:1000]},
        }
        self._api.create(CONFIG_MAPS, memory)
        self._api.delete(self._resource, _name(top), uid=_uid(top))

    def _give(self, top: Body, secrets: Mapping[str, str]) -> None:
        """Create the Secret that the job's pods refer to, unless it has it; a predecessor's is replaced."""
        name, uid = _name(top), _uid(top)
        body: Body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": name,
                "labels": labels(self._settings),
                "ownerReferences": [
                    {"apiVersion": text(top, "apiVersion"), "kind": text(top, "kind"), "name": name, "uid": uid}
                ],
            },
            "type": "Opaque",
            "immutable": True,
            "stringData": dict(secrets),
        }
        if self._api.create(SECRETS, body):
            return
        found = self._api.get(SECRETS, name)
        owners = part(found or {}, "metadata").get("ownerReferences")
        if isinstance(owners, list) and any(isinstance(one, dict) and one.get("uid") == uid for one in owners):
            return
        if found is not None:
            if part(found, "metadata", "labels").get(MANAGED_BY) != US:
                raise ForeignObjectError("Secret", name, text(top, "metadata", "annotations", JOB_ID))
            self._api.delete(SECRETS, name, uid=_uid(found))
        if not self._api.create(SECRETS, body):
            raise KubernetesUnavailableError(f"create secret {name}", "the Secret of a predecessor is being deleted")


@dataclass(frozen=True, slots=True)
class _Children:
    """Objects by the value of one of their labels."""

    items: Sequence[Body] = ()
    label: str = ""

    @classmethod
    def of(cls, items: Sequence[Body], label: str) -> _Children:
        return cls(items, label)

    def __getitem__(self, value: str) -> Sequence[Body]:
        return [item for item in self.items if part(item, "metadata", "labels").get(self.label) == value]


def _recalled(memory: Body, where: str) -> EngineState | None:
    job, phase = text(memory, "metadata", "annotations", JOB_ID), text(memory, "data", PHASE)
    if not job or phase not in (EnginePhase.CANCELLED, EnginePhase.PREEMPTED):
        return None
    reason = text(memory, "data", REASON)
    return EngineState(id=job, phase=EnginePhase(phase), handle=f"{where}/{_name(memory)}", reason=reason)


def _grace_of(pod: Body) -> int:
    found = part(pod, "spec").get("terminationGracePeriodSeconds")
    return found if isinstance(found, int) else 30


def _name(body: Body) -> str:
    return text(body, "metadata", "name")


def _uid(body: Body) -> str:
    return text(body, "metadata", "uid")
