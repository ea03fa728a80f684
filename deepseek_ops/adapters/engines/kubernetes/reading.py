"""What the objects of a job say of it. Pure.

=====================================  =========================================================================
deletion has begun                     RUNNING, "is ending": its pods have their grace
``Completed`` / ``Complete``           ENDED, 0
``Failed`` and a disrupted pod         PREEMPTED: priority, eviction, drained or lost node
``Failed``                             ENDED with the status of the pod that failed first
suspended, Kueue has evicted it        PREEMPTED: Kueue would start it again, and an attempt runs once
suspended                              PENDING, with Kueue's reason
no pod has begun                       PENDING, with the scheduler's or the kubelet's reason
otherwise                              RUNNING
=====================================  =========================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pydantic import JsonValue

from deepseek_ops.adapters.engines.kubernetes.bodies import Body, because, condition, part, parts, text
from deepseek_ops.adapters.engines.kubernetes.objects import JOB_ID, NODE
from deepseek_ops.core.jobs import EnginePhase, EngineState, JobCause

INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
_DISRUPTED = frozenset({"Evicted", "Preempting", "NodeLost", "NodeShutdown", "Shutdown", "Terminated", "NodeAffinity"})
"""Reasons of a pod's own that kubelets give where the condition DisruptionTarget is not (yet) set."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A job's object and what belongs to it."""

    top: Body
    pods: Sequence[Body] = ()
    jobs: Sequence[Body] = ()
    """The batch Jobs below it; looked at when it failed."""
    workloads: Sequence[Body] = field(default=())
    """Kueue's."""


def engine_state(seen: Seen, *, where: str) -> EngineState:
    """Return the job's state."""
    phase, reason, status = _verdict(seen)
    starved = phase is EnginePhase.ENDED and any(map(_ran_out_of_memory, seen.pods))
    return EngineState(
        id=text(seen.top, "metadata", "annotations", JOB_ID),
        phase=phase,
        handle=f"{where}/{text(seen.top, 'metadata', 'name')}",
        reason=reason,
        cause=JobCause.OUT_OF_MEMORY if starved else None,
        exit_status=status,
    )


def is_failed(top: Body) -> bool:
    return condition(top, "Failed") is not None


def is_suspended(top: Body) -> bool:
    return part(top, "spec").get("suspend") is True


def evicted(seen: Seen) -> str:
    """Return why Kueue took the job's machines away; "" when it has not."""
    for workload in seen.workloads:
        found = condition(workload, "Evicted")
        if found is not None:
            return f"Kueue evicted it: {because(found)}"
    return ""


def first_failure(pods: Sequence[Body]) -> Body | None:
    """Return the pod whose command ended badly first; the others were taken along."""
    failed = [pod for pod in pods if text(pod, "status", "phase") == "Failed"]
    return min(failed, key=_finished, default=None)


def index_of(pod: Body) -> int:
    found = text(pod, "metadata", "annotations", INDEX_LABEL) or text(pod, "metadata", "labels", INDEX_LABEL)
    return int(found) if found.isdigit() else 0


def _verdict(seen: Seen) -> tuple[EnginePhase, str, int | None]:
    if condition(seen.top, "Completed") is not None or condition(seen.top, "Complete") is not None:
        return EnginePhase.ENDED, "", 0
    if is_failed(seen.top):
        return _failed(seen)
    if text(seen.top, "metadata", "deletionTimestamp"):
        return EnginePhase.RUNNING, "is ending", None
    if is_suspended(seen.top):
        reason = evicted(seen)
        if reason:
            return EnginePhase.PREEMPTED, reason, None
        return EnginePhase.PENDING, _why_suspended(seen.workloads), None
    if any(text(pod, "status", "phase") in ("Running", "Succeeded", "Failed") for pod in seen.pods):
        return EnginePhase.RUNNING, "", None
    return EnginePhase.PENDING, next(filter(None, map(_why_waiting, seen.pods)), "its pods are being made"), None


def _failed(seen: Seen) -> tuple[EnginePhase, str, int | None]:
    disruption = next(filter(None, map(_disruption, seen.pods)), "") or _told_by_jobs(seen.jobs)
    if disruption:
        return EnginePhase.PREEMPTED, disruption, None
    failed = condition(seen.top, "Failed") or {}
    reasons = [because(found) for job in seen.jobs if (found := condition(job, "Failed"))]
    pod = first_failure(seen.pods)
    status: int | None = None
    if pod is not None:
        terminated = _terminated(pod)
        code = terminated.get("exitCode")
        status = code if isinstance(code, int) else None
        reasons.insert(0, f"{text(pod, 'metadata', 'name')}: {because(terminated) or because(part(pod, 'status'))}")
    return EnginePhase.ENDED, "; ".join(filter(None, reasons)) or because(failed), status


def _disruption(pod: Body) -> str:
    found = condition(pod, "DisruptionTarget")
    reason = text(pod, "status", "reason")
    if found is None and reason not in _DISRUPTED:
        return ""
    node = text(pod, "spec", "nodeName") or "its node"
    return f"{text(pod, 'metadata', 'name')} on {node}: {because(found or part(pod, 'status'))}"


def _told_by_jobs(jobs: Sequence[Body]) -> str:
    """Return the disruption of a pod that is gone with its node: the Job's condition remembers which rule it met."""
    for job in jobs:
        found = condition(job, "Failed") or {}
        if found.get("reason") == "PodFailurePolicy" and "DisruptionTarget" in text(found, "message"):
            return because(found)
    return ""


def _why_suspended(workloads: Sequence[Body]) -> str:
    for workload in workloads:
        for found in parts(workload, "status", "conditions"):
            if found.get("type") in ("QuotaReserved", "Admitted") and found.get("status") == "False":
                return f"Kueue: {because(found)}"
    return "is suspended until it is admitted"


def _why_waiting(pod: Body) -> str:
    for found in parts(pod, "status", "conditions"):
        if found.get("type") == "PodScheduled" and found.get("status") == "False":
            return because(found)
    waiting = part(_container(pod), "state", "waiting")
    return because(waiting)


def _container(pod: Body) -> Body:
    statuses = parts(pod, "status", "containerStatuses")
    return next((found for found in statuses if found.get("name") == NODE), {})


def _ran_out_of_memory(pod: Body) -> bool:
    """Return whether the kubelet saw the kernel kill a process of the pod's container for its memory limit."""
    return _terminated(pod).get("reason") == "OOMKilled"


def _terminated(pod: Body) -> Body:
    return part(_container(pod), "state", "terminated")


def _finished(pod: Body) -> tuple[bool, str, int]:
    """Order pods by the end of their command; RFC 3339 in UTC sorts as text. Those without one come last."""
    end: JsonValue = _terminated(pod).get("finishedAt")
    return (not isinstance(end, str), str(end), index_of(pod))
