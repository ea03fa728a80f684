"""Jobs in the environment of their run's lock: where it comes from, and what was really there in the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepseek_ops.airflow.operators.base import DeepSeekOpsOperator
    from deepseek_ops.core.environments import EnvironmentLock
    from deepseek_ops.core.jobs import JobSpec, JobStatus


def submit(operator: DeepSeekOpsOperator, job: JobSpec, *, stopped: Callable[[], bool]) -> JobStatus:
    """Submit the job to run in its run's environment, built where it is not there yet; return its status.

    A job that runs or has succeeded is found as it is. Raises what building raises; BuildStoppedError when ``stopped``
    said so meanwhile.
    """
    from deepseek_ops.core.jobs import JobPhase
    from deepseek_ops.pipeline.environment import interpreter_for

    known = operator.launcher.status(job.name)
    secrets = operator.store_hook.environment()
    lock = None
    remote = operator.launcher_hook.settings().engine != "local"
    if remote:
        return _submit_remote(operator, job, secrets)
    if known is None or known.phase not in (JobPhase.RUNNING, JobPhase.SUCCEEDED):
        lock = _lock_of(operator)
    cache = operator.launcher_hook.environments
    with interpreter_for(lock, cache, say=operator.log.info, stopped=stopped) as python:
        status: JobStatus = operator.launcher.submit(job.evolve(python=python) if python else job, secrets=secrets)
    return status


def _submit_remote(operator: DeepSeekOpsOperator, job: JobSpec, secrets: Mapping[str, str]) -> JobStatus:
    """Submit to machines that are not ours to build on: the engine's interpreter or image is the environment.

    The key of the run's environment goes with the job, for an image whose tag follows it. What really ran is compared
    with the lock afterwards, as everywhere (``note_what_ran``).
    """
    run = _run_of(operator)
    keyed = job if run is None else job.evolve(environment_key=run.manifest.environment)
    status: JobStatus = operator.launcher.submit(keyed, secrets=secrets)
    return status


def note_what_ran(operator: DeepSeekOpsOperator, job: JobSpec, status: JobStatus, *, run: str) -> None:
    """Store what a settled job ran with.

    Raises EnvironmentMismatchError when it succeeded with other versions than the lock, unless ``drift`` says warn.
    """
    from deepseek_ops.core.jobs import JobPhase
    from deepseek_ops.pipeline.environment_records import check_drift, record_environment

    events = operator.launcher.events(job.name)
    resolved = record_environment(operator.store_hook.blobs, operator.facts, events, job=job.name, run=run)
    plan = _run_of(operator)
    if plan is None or resolved is None or status.phase is not JobPhase.SUCCEEDED:
        return
    policy = operator.config(plan).jobs.setup.drift
    for difference in check_drift(_lock_of(operator), resolved, policy=policy):
        operator.log.warning("not as locked: %s", difference)


def _lock_of(operator: DeepSeekOpsOperator) -> EnvironmentLock | None:
    from deepseek_ops.pipeline.environment import lock_of_code

    run = _run_of(operator)
    return None if run is None else lock_of_code(operator.store_hook.blobs, run.code, run.lock)


def _run_of(operator: DeepSeekOpsOperator) -> Any:
    """Return the plan of the operator's run, or None for one that belongs to no commit."""
    from deepseek_ops.pipeline.runs import RunPlan

    run = getattr(operator, "run", None)
    return RunPlan.load(run) if isinstance(run, Mapping) else None
