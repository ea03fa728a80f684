"""Work that is a function of its input is done once: the job's name and its remembered result come from the input.

Two runs that need the same prepared data, trial, evaluation or export share one job while it runs and its result
afterwards. A retry finds the job by its name; a later run finds the fact.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

import deepseek_ops
from deepseek_ops.core.errors import ObjectExistsError
from deepseek_ops.core.jobs import JobKind, JobSpec
from deepseek_ops.core.ports import Facts
from deepseek_ops.core.records import canonical_json, digest_of

RESULT = "result"
"""Kind of the facts that hold results by job name."""


def job_name(kind: JobKind, payload: Mapping[str, JsonValue], *, environment: str) -> str:
    """Return ``<kind>-<24 hex digits>`` over everything that decides the result."""
    identity: dict[str, JsonValue] = {
        "kind": kind,
        "payload": dict(payload),
        "environment": environment,
        # A release of ours may compute differently: its results are its own.
        "software": deepseek_ops.__version__,
    }
    return f"{kind}-{digest_of(canonical_json(identity))[:24]}"


def remembered(facts: Facts, job: JobSpec) -> dict[str, JsonValue] | None:
    """Return what an equal job returned before, or None."""
    fact = facts.get(RESULT, job.name)
    return None if fact is None else fact.body


def remember(facts: Facts, job: JobSpec, result: Mapping[str, JsonValue], *, run: str) -> None:
    """Store a job's result; of two that finished the same job, the first one's fact stands."""
    try:
        facts.insert(RESULT, job.name, dict(result), run=run)
    except ObjectExistsError:
        return
