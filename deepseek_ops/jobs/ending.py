"""What the end of an attempt means: a pure function of what the job said and of who wanted it to end."""

from __future__ import annotations

from deepseek_ops.adapters.local_launcher.folder import StopRequest
from deepseek_ops.core.jobs import JobPhase
from deepseek_ops.jobs.entry import Outcome


def judge(outcome: Outcome, request: StopRequest | None, *, killed_after: float | None = None) -> tuple[JobPhase, str]:
    """Return the phase in which the attempt ended, and the reason (empty for a success).

    A job that returned without ever having been told to stop has finished, whatever was asked of it meanwhile. One
    that was told by a signal nobody announced has not: what it returned is a part.
    ``killed_after`` is the grace in seconds, when it was used up.
    """
    if outcome.result is not None and not outcome.stop_seen:
        return JobPhase.SUCCEEDED, ""
    if outcome.stopped:
        return JobPhase.STOPPED, outcome.reason
    if request is None:
        if outcome.result is not None:
            return JobPhase.LOST, "a process of the job was told to end by a signal from outside"
        return (JobPhase.LOST if outcome.retry else JobPhase.FAILED), outcome.reason
    phase = {"stop": JobPhase.STOPPED, "timeout": JobPhase.FAILED, "signal": JobPhase.LOST}[request.cause]
    if killed_after is not None:
        return phase, f"{request.reason}; killed after grace_seconds={killed_after:g}"
    return phase, f"{request.reason}; then: {outcome.reason}" if outcome.reason else request.reason
