"""What lost attempts cost a training: machines nothing while it gets on, memory its batch size, the rest its budget."""

from __future__ import annotations

from deepseek_ops.core.jobs import JobCause, JobPhase, JobStatus
from deepseek_ops.training.losses import Losses


def lost(attempt: int, cause: JobCause | None = None, step: int | None = None) -> JobStatus:
    return JobStatus(name="job", phase=JobPhase.LOST, reason="gone", cause=cause, attempt=attempt, step=step)


def verdict(losses: Losses, status: JobStatus) -> str:
    return losses.verdict(status, max_losses=3, max_in_place=5)


def test_machines_may_go_without_end_while_the_training_gets_on() -> None:
    losses = Losses()
    for attempt in range(1, 101):
        status = lost(attempt, (JobCause.PREEMPTED, JobCause.MACHINE_LOST)[attempt % 2], step=attempt * 10)
        losses = losses.after(status)
        assert verdict(losses, status) == ""
    assert (losses.others, losses.divisor, losses.step) == (0, 1, 1000)


def test_machines_that_go_before_a_new_step_end_it_after_a_while() -> None:
    losses, status = Losses(step=70), lost(1)
    for attempt in range(1, 6):
        status = lost(attempt, JobCause.PREEMPTED, step=60 + attempt)
        losses = losses.after(status)
        assert verdict(losses, status) == ""
    onward = losses.after(lost(6, JobCause.PREEMPTED, step=71))
    assert onward.in_place == 0
    status = lost(6, JobCause.PREEMPTED, step=70)
    assert "6 times in a row without a step further than 70" in verdict(losses.after(status), status)


def test_other_losses_use_up_a_budget_that_preemptions_do_not_touch() -> None:
    losses, said = Losses(), []
    for attempt, cause in enumerate([None, JobCause.HUNG, JobCause.PREEMPTED, None, None], start=1):
        losses = losses.after(lost(attempt, cause, step=attempt))
        said.append(verdict(losses, lost(attempt, cause)))
    assert said[:4] == ["", "", "", ""]
    assert "it was lost 4 times" in said[4]


def test_an_attempt_that_is_counted_twice_counts_once() -> None:
    for cause in (None, JobCause.OUT_OF_MEMORY, JobCause.PREEMPTED):
        once = Losses().after(lost(1, cause, step=0))
        assert once.after(lost(1, cause, step=0)) == once
    assert Losses().after(lost(1, JobCause.OUT_OF_MEMORY)).after(lost(2, JobCause.OUT_OF_MEMORY)).divisor == 4
