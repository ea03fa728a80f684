"""How a job ends in time when nobody renews its lease: its grace must fit into the minute after it.

Whoever stops renewing relies on it that nothing is left of the job so long after the lease, whatever its grace.
"""

from __future__ import annotations

AFTER_LEASE_SECONDS = 60.0
"""Nothing of a job is left so long after its lease."""


def patience(lease_seconds: float, grace_seconds: float, *, last_words: float) -> float:
    """Return after how many seconds without a renewal a job is told to end.

    At its lease, or so much earlier that its grace and the ``last_words`` fit into what is left; never before half the
    lease, which somebody may have renewed as agreed.
    """
    early = max(0.0, grace_seconds + last_words - AFTER_LEASE_SECONDS)
    return max(lease_seconds / 2, lease_seconds - early)


def over_at(renewed: float, lease_seconds: float, *, last_words: float) -> float:
    """Return when the grace of a job ends at the latest, on the clock of ``renewed``; infinity without a lease."""
    return renewed + lease_seconds + AFTER_LEASE_SECONDS - last_words if lease_seconds else float("inf")
