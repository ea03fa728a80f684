"""What the lost attempts of a training cost it: pure, so that counting an end twice changes nothing.

Three kinds of losses are told apart by their cause. Machines that were taken away or broke are nobody's fault: they
cost nothing while the training gets further between them. Memory that ran out would run out again: the next attempt
gets smaller micro-batches. Every other loss uses up a budget.
"""

from __future__ import annotations

from pydantic import Field

from deepseek_ops.core.jobs import JobCause, JobStatus
from deepseek_ops.core.records import Record


class Losses(Record):
    """What has been counted so far; kept between the tries of a task."""

    attempt: int = Field(default=0, ge=0, description="The last one that was counted.")
    others: int = Field(default=0, ge=0, description="Losses that use up the budget.")
    divisor: int = Field(default=1, ge=1, description="By how much micro-batches are smaller than planned.")
    step: int = Field(default=0, ge=0, description="The furthest that any attempt came.")
    in_place: int = Field(default=0, ge=0, description="Times that machines went, in a row, before a new step.")

    def after(self, status: JobStatus) -> Losses:
        """Return the losses with this attempt among them; one that was counted before changes nothing."""
        if status.attempt == self.attempt:
            return self
        reached = max(self.step, status.step or 0)
        counted = self.evolve(attempt=status.attempt, step=reached)
        if status.taken_away:
            return counted.evolve(in_place=0 if reached > self.step else self.in_place + 1)
        if status.cause is JobCause.OUT_OF_MEMORY:
            return counted.evolve(divisor=2 * self.divisor)
        return counted.evolve(others=self.others + 1)

    def verdict(self, status: JobStatus, *, max_losses: int, max_in_place: int) -> str:
        """Return why the training is not tried again after ``status``; empty where it is."""
        again = "see its events, and clear the task to go on"
        if status.taken_away and self.in_place > max_in_place:
            how = f"its machines went {self.in_place} times in a row without a step further than {self.step}"
            return f"{how}, last: {status.reason}; {again}"
        if self.others > max_losses:
            return f"it was lost {self.others} times, last: {status.reason}; {again}"
        return ""
