"""What an attempt is that has not said how it ended: a pure function of what store and engine show."""

from __future__ import annotations

from dataclasses import dataclass

from deepseek_ops.adapters.remote_launcher.asking import ranks_per_node
from deepseek_ops.adapters.remote_launcher.layout import Beat, RemoteAttempt
from deepseek_ops.core.jobs import EXIT_DO_NOT_RETRY, EnginePhase, EngineState, JobCause, JobPhase, JobStatus

START_SECONDS = 900.0
"""How long an attempt may be without an engine's job before its starter counts as dead."""
SETTLE_SECONDS = 60.0
"""How long the engine may not know a job that it has accepted, and how fresh a beat must be that speaks against it."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of an attempt without ``ended.json``. Ages are in seconds, by the store's stamps; 0 = just now."""

    record: RemoteAttempt
    engine: EngineState | None
    beat: Beat | None = None
    beat_age: float = 0.0
    created_age: float = 0.0
    started_age: float | None = None
    """Since the engine accepted it; None while nobody has recorded that it did."""
    claimed: bool = False
    """Whether an agent has begun."""
    stop_reason: str = ""
    """Why somebody wants it to end; empty while nobody does."""
    last_words: str = ""
    """The last line of what the engine has of its output."""


def judged(seen: Seen, *, log: str) -> JobStatus:
    """Return the attempt's status. An attempt that ended without a word is lost, or stopped if that was wanted."""
    phase, reason, cause = _verdict(seen)
    if phase is JobPhase.LOST and seen.stop_reason:
        phase, reason, cause = JobPhase.STOPPED, f"{seen.stop_reason}; then: {reason}", None
    beat = seen.beat or Beat(node=0)
    spec = seen.record.spec
    spent = beat.wall_seconds * ranks_per_node(spec) * spec.num_nodes
    return JobStatus(
        name=spec.name,
        phase=phase,
        reason=reason,
        cause=cause,
        exit_status=seen.engine.exit_status if seen.engine is not None and phase is not JobPhase.RUNNING else None,
        attempt=seen.record.attempt,
        restarts=beat.restarts,
        step=beat.step,
        wall_seconds=beat.wall_seconds,
        device_seconds=seen.record.device_seconds + spent,
        log=log,
    )


def _verdict(seen: Seen) -> tuple[JobPhase, str, JobCause | None]:
    if seen.engine is None:
        return _unknown_to_engine(seen)
    state = seen.engine
    if not state.settled:
        return JobPhase.RUNNING, _goes_on(seen, state), None
    if state.phase is EnginePhase.PREEMPTED:
        cause = state.cause or JobCause.PREEMPTED
        return JobPhase.LOST, f"the engine took its machines away{_because(state.reason)}", cause
    if state.phase is EnginePhase.CANCELLED:
        return JobPhase.LOST, f"it was cancelled in the engine{_because(state.reason)}", state.cause
    return _ended_without_a_word(seen, state)


def _goes_on(seen: Seen, state: EngineState) -> str:
    if state.phase is EnginePhase.PENDING:
        return f"waits for machines{_because(state.reason)}"
    if seen.beat is None:
        return "its machines get ready"
    return f"is ending: {seen.beat.stopping}" if seen.beat.stopping else ""


def _ended_without_a_word(seen: Seen, state: EngineState) -> tuple[JobPhase, str, JobCause | None]:
    told = f"exit status {state.exit_status}" if state.exit_status is not None else "no exit status"
    reason = f"its processes ended without a word ({told}{_because(state.reason)})"
    if seen.last_words:
        reason = f"{reason}; the last line was: {seen.last_words}"
    # An agent that cannot even begin (no package, no access to the store) cannot the next time either.
    never = state.exit_status == EXIT_DO_NOT_RETRY and not seen.claimed
    return (JobPhase.FAILED if never else JobPhase.LOST), reason, state.cause


def _unknown_to_engine(seen: Seen) -> tuple[JobPhase, str, JobCause | None]:
    if seen.beat is not None and seen.beat_age < SETTLE_SECONDS:
        return JobPhase.RUNNING, "the engine does not know it, but its machines answer", None
    if seen.started_age is None:
        if seen.created_age < START_SECONDS and not seen.stop_reason:
            return JobPhase.RUNNING, "is being started", None
        return JobPhase.LOST, "nobody started it", None
    if seen.started_age < SETTLE_SECONDS and seen.beat is None:
        return JobPhase.RUNNING, "is being started", None
    reason = "the engine does not know it any more, and its machines do not answer"
    return JobPhase.LOST, reason, JobCause.MACHINE_LOST


def _because(reason: str) -> str:
    return f": {reason}" if reason else ""
