"""How often trainings on the machines behind a connection lost them: what an automatic checkpoint interval is fed with.

Every attempt of a training leaves one small fact when it has ended, so the rate is a sum over the last ones, whoever
ran them and whether their jobs are still known to an engine.
"""

from __future__ import annotations

from contextlib import suppress

from deepseek_ops.core.errors import ObjectExistsError
from deepseek_ops.core.jobs import JobPhase, JobSpec, JobStatus
from deepseek_ops.core.ports import Facts
from deepseek_ops.training.intervals import PAYLOAD_KEY, History

ATTEMPT = "training_attempt"
"""Kind of the facts that hold ended attempts, keyed ``<connection>/<job>/<attempt>``."""
READ = 200
"""Attempts that are read at most, the newest ones."""


def note_attempt(facts: Facts, job: JobSpec, status: JobStatus, *, where: str, lost_machines: bool) -> None:
    """Store what a settled attempt met at the connection ``where``; a second call changes nothing."""
    interrupted = int(status.phase is JobPhase.LOST and lost_machines)
    met = History(interrupted, status.wall_seconds * job.num_nodes)
    with suppress(ObjectExistsError):
        facts.insert(ATTEMPT, f"{where}/{job.name}/{status.attempt:04d}", met.dump())


def history_at(facts: Facts, where: str) -> History:
    """Return what the last trainings at the connection met."""
    return History.of(History.load(fact.body) for fact in facts.find(ATTEMPT, prefix=f"{where}/", limit=READ))


def with_history(job: JobSpec, history: History) -> JobSpec:
    """Return the job that knows what trainings before it met. Its name, and so its result, stays the same."""
    return job.evolve(payload={**job.payload, PAYLOAD_KEY: history.dump()})
