"""What SageMaker says of a training job, and what it means. Pure.

==============================================  =================================================================
``Completed``                                   ENDED, 0
an ``Interrupted`` among the transitions        PREEMPTED: spot machines were taken; SageMaker would start the job
                                                again by itself, so the engine stops it
``Stopped`` with ``MaxWaitTimeExceeded``        PREEMPTED: there was no spot capacity
``Stopped`` with ``MaxRuntimeExceeded``         ENDED, with the reason
``Stopped``                                     CANCELLED
``Failed`` for want of capacity                 PREEMPTED
``Failed``                                      ENDED with the exit code of ``FailureReason``
``Starting``, ``Pending``, ``Downloading...``   PENDING
otherwise                                       RUNNING
==============================================  =================================================================
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from deepseek_ops.core.jobs import EnginePhase, JobCause

Shown = Mapping[str, object]
_WAITING = frozenset({"Starting", "Pending", "LaunchingMLInstances", "PreparingTrainingStack", "Downloading",
                      "DownloadingTrainingImage", "Restarting"})  # fmt: skip
_NO_CAPACITY = re.compile(r"CapacityError|InsufficientInstanceCapacity|Insufficient capacity", re.IGNORECASE)
_NO_MEMORY = re.compile(r"out of memory|OutOfMemory|instance type with more memory", re.IGNORECASE)
_EXIT_CODE = re.compile(r"exit code:? ?\"?(\d+)", re.IGNORECASE)


def text(shown: Shown, key: str) -> str:
    value = shown.get(key)
    return value if isinstance(value, str) else ""


def transitions(shown: Shown) -> list[str]:
    """Return the secondary statuses that the job has gone through."""
    found = shown.get("SecondaryStatusTransitions")
    items: Sequence[object] = found if isinstance(found, list) else []
    return [text(item, "Status") for item in items if isinstance(item, Mapping)]


def was_interrupted(shown: Shown) -> bool:
    return "Interrupted" in (text(shown, "SecondaryStatus"), *transitions(shown))


def verdict(shown: Shown) -> tuple[EnginePhase, str, int | None]:
    """Return phase, reason and exit status."""
    status, secondary = text(shown, "TrainingJobStatus"), text(shown, "SecondaryStatus")
    reason = text(shown, "FailureReason")
    if status == "Completed":
        return EnginePhase.ENDED, "", 0
    if was_interrupted(shown):
        return EnginePhase.PREEMPTED, _joined("its spot instances were taken", reason), None
    if status == "Stopped":
        return _stopped(secondary, transitions(shown), reason)
    if status == "Failed":
        if _NO_CAPACITY.search(reason):
            return EnginePhase.PREEMPTED, reason, None
        code = _EXIT_CODE.search(reason)
        return EnginePhase.ENDED, reason, int(code[1]) if code else None
    if status in ("Stopping", "Deleting"):
        return EnginePhase.RUNNING, "is ending", None
    if secondary in _WAITING:
        return EnginePhase.PENDING, _joined(secondary, _last_message(shown)), None
    return EnginePhase.RUNNING, "", None


def cause_of(shown: Shown) -> JobCause | None:
    """Return the cause of a failure that SageMaker names: its own words for too little memory."""
    failed = text(shown, "TrainingJobStatus") == "Failed"
    return JobCause.OUT_OF_MEMORY if failed and _NO_MEMORY.search(text(shown, "FailureReason")) else None


def _stopped(secondary: str, passed: Sequence[str], reason: str) -> tuple[EnginePhase, str, int | None]:
    told = (secondary, *passed)
    if "MaxWaitTimeExceeded" in told:
        return EnginePhase.PREEMPTED, _joined("no spot capacity within max_wait_seconds", reason), None
    if "MaxRuntimeExceeded" in told:
        return EnginePhase.ENDED, _joined("it ran longer than its limit in SageMaker", reason), None
    return EnginePhase.CANCELLED, _joined("it was stopped", reason), None


def _last_message(shown: Shown) -> str:
    found = shown.get("SecondaryStatusTransitions")
    last = found[-1] if isinstance(found, list) and found else {}
    return text(last, "StatusMessage") if isinstance(last, Mapping) else ""


def _joined(what: str, why: str) -> str:
    return f"{what}: {why}" if why and why != what else what
