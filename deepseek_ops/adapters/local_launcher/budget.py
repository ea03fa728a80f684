"""What an attempt may run when all attempts of a job share a budget: what the ones before it have left."""

from __future__ import annotations

from deepseek_ops.adapters.local_launcher.errors import BudgetSpentError
from deepseek_ops.core.jobs import JobSpec

LEAST_SECONDS = 1.0


def within_budget(job: JobSpec, spent_device_seconds: float, *, num_ranks: int) -> JobSpec:
    """Return the job whose ``timeout_seconds`` is at most what is left of ``budget_seconds``.

    A budget is of all ``num_ranks`` at once, so an attempt on fewer of them spends it more slowly, as it does money.
    Raises BudgetSpentError when less than a second is left.
    """
    if job.budget_seconds is None:
        return job
    spent = spent_device_seconds / num_ranks
    if spent > job.budget_seconds - LEAST_SECONDS:
        raise BudgetSpentError(job.name, spent, job.budget_seconds)
    return job.evolve(timeout_seconds=min(job.timeout_seconds, job.budget_seconds - spent))
