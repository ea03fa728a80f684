"""Which stop means that nobody goes on: that of a trial whose rivals are better.

Every other stop is a pause: a person may start the same trial again, and a machine that is taken away always means
that another one takes over. The launcher passes on a reason and no more, so the reason's first words say it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepseek_ops.core.records import TrainingPlan
    from deepseek_ops.jobs.context import JobContext

PRUNED = "pruned by "
"""What ``RunTrialOperator`` begins the reason of its stop with."""


def is_pruned(context: JobContext, plan: TrainingPlan) -> bool:
    """Return whether the job is stopped for good: what it would be resumed from need not be kept."""
    return plan.purpose == "trial" and context.stop_reason.startswith(PRUNED)
