"""What the end of an attempt means: a pure function of what the job said and of who wanted it to end."""

from __future__ import annotations

from dataclasses import dataclass

from deepseek_ops.adapters.local_launcher.folder import StopRequest
from deepseek_ops.core.jobs import JobCause, JobPhase
from deepseek_ops.jobs.entry import Outcome


@dataclass(frozen=True, slots=True)
class Verdict:
    """How an attempt ended."""

    phase: JobPhase
    reason: str = ""
    """Empty for a success."""
    cause: JobCause | None = None


def judge(outcome: Outcome, request: StopRequest | None, *, killed_after: float | None = None) -> Verdict:
    """Return the phase in which the attempt ended, the reason and the cause.

    A job that returned without ever having been told to stop has finished, whatever was asked of it meanwhile. One
    that was told by a signal nobody announced has not: what it returned is a part. Nor has one that was told by its
    own code, which had a notice that the machine will be taken away; such a notice is the cause.
    ``killed_after`` is the grace in seconds, when it was used up.
    """
    if outcome.result is not None and not outcome.stop_seen:
        return Verdict(JobPhase.SUCCEEDED)
    if outcome.stopped:
        return Verdict(JobPhase.STOPPED, outcome.reason)
    if request is None:
        return _unasked(outcome)
    phase = {"stop": JobPhase.STOPPED, "timeout": JobPhase.FAILED, "signal": JobPhase.LOST}[request.cause]
    cause = request.counts_as
    if request.cause == "timeout":
        cause = cause or JobCause.TIMED_OUT
    if killed_after is not None:
        return Verdict(phase, f"{request.reason}; killed after grace_seconds={killed_after:g}", cause)
    reason = f"{request.reason}; then: {outcome.reason}" if outcome.reason else request.reason
    return Verdict(phase, reason, cause)


def _unasked(outcome: Outcome) -> Verdict:
    if outcome.result is None:
        # Ranks that were told to leave may fail on the way out, where their peers are gone already.
        phase = JobPhase.LOST if outcome.retry or outcome.told_cause else JobPhase.FAILED
        return Verdict(phase, outcome.reason, outcome.told_cause or outcome.cause)
    if outcome.told_cause is not None:
        return Verdict(JobPhase.LOST, f"it was told to leave: {outcome.told}", outcome.told_cause)
    return Verdict(JobPhase.LOST, "a process of the job was told to end by a signal from outside")
