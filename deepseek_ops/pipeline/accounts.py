"""What a job cost: device-seconds x price, labelled by what they bought, written once per job attempt."""

from __future__ import annotations

from deepseek_ops.core.jobs import JobPhase, JobStatus
from deepseek_ops.core.ports import Facts
from deepseek_ops.cost import account, load_prices

_LABELS = {
    JobPhase.SUCCEEDED: "productive",
    JobPhase.FAILED: "failed",
    JobPhase.LOST: "failed",
    JobPhase.STOPPED: "pruned",
}


def account_job(facts: Facts, status: JobStatus, *, run: str, device: str = "cpu") -> None:
    """Store the cost of a settled job's attempts; a second call for the same attempt changes nothing."""
    account(facts, load_prices(), run=run, status=status, label=_LABELS[status.phase], device=device)
