"""The train operator at the end of an attempt: what it keeps for the next try, what it raises, how long it waits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import TaskDeferred
from fixtures_triggers import connect

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.airflow.hooks import LauncherHook
from deepseek_ops.airflow.operators.training import DeepSpeedTrainOperator, kept_losses
from deepseek_ops.airflow.retry import RETRY_IF_TRANSIENT
from deepseek_ops.core.errors import JobFailedError, JobLostError, JobPreemptedError, JobStoppedError
from deepseek_ops.core.jobs import JobCause, JobPhase, JobSpec, JobStatus
from deepseek_ops.core.records import DatasetVersion, Hyperparameters, TrainingPlan
from deepseek_ops.training.losses import Losses
from deepseek_ops.training.micro_batch import PAYLOAD_KEY

JOB = JobSpec(name="train-a", kind="train", payload={"plan": {}}, timeout_seconds=10)
PLAN = TrainingPlan(
    dataset=DatasetVersion(name="corpus", version="a" * 64, tree="b" * 64, num_files=1, num_bytes=1),
    model={"model_type": "deepseek_v3"},
    hyperparameters=Hyperparameters(learning_rate=0.001, batch_size=4, max_steps=2),
)


class StateStore(dict[str, Any]):
    """The task state store: JSON under keys."""

    def set(self, key: str, value: Any) -> None:
        self[key] = value


class Task:
    """A task instance, as far as the operator asks it."""

    map_index = -1
    start_date = datetime(2026, 5, 1, tzinfo=UTC)

    def xcom_pull(self, **_: object) -> dict[str, object]:
        return {"step": 3, "eta_seconds": 12.5}


@pytest.fixture
def context() -> dict[str, Any]:
    return {"run_id": "r", "ti": Task(), "task_state_store": StateStore()}


@pytest.fixture
def operator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DeepSpeedTrainOperator:
    connect(monkeypatch, "deepseek_ops_store", conn_type="deepseek_store", host=f"file://{tmp_path / 'store'}")
    connect(monkeypatch, "deepseek_ops_facts", conn_type="deepseek_facts", host=f"sqlite:///{tmp_path / 'facts.db'}")
    connect(monkeypatch, "spot", conn_type="deepseek_launcher", host=str(tmp_path / "jobs"))
    made = DeepSpeedTrainOperator(task_id="train", run={}, plan=PLAN.dump(), execution_timeout=timedelta(hours=2))
    made.__dict__["launcher_hook"] = LauncherHook("spot")
    monkeypatch.setattr(made, "_job", lambda: JOB)
    monkeypatch.setattr(made, "_lane", lambda: "lane")
    monkeypatch.setattr("deepseek_ops.airflow.operators.base.note_what_ran", lambda *_, **__: None)
    return made


def lost(attempt: int = 1, cause: JobCause | None = None, reason: str = "gone", **fields: Any) -> JobStatus:
    spent = {"wall_seconds": 60, "device_seconds": 60.0 * attempt}
    return JobStatus(name=JOB.name, phase=JobPhase.LOST, reason=reason, cause=cause, attempt=attempt, **spent, **fields)


def end(operator: DeepSpeedTrainOperator, context: Any, status: JobStatus) -> Any:
    return operator.execute_complete(context, status.dump())


@pytest.mark.parametrize("cause", [JobCause.PREEMPTED, JobCause.MACHINE_LOST])
def test_machines_that_go_cost_nothing_and_the_training_goes_on_at_once(operator, context, cause, tmp_path) -> None:
    for attempt in range(1, 31):
        with pytest.raises(JobPreemptedError) as raised:
            end(operator, context, lost(attempt, cause, reason="node 1 was silent", step=attempt))
    assert RETRY_IF_TRANSIENT.evaluate(raised.value, 1, 3, {}).retry_delay == timedelta(seconds=1)
    assert kept_losses(context).others == 0
    assert len(open_facts(f"sqlite:///{tmp_path / 'facts.db'}").find("cost")) == 30, "every attempt is accounted"


def test_machines_that_go_before_anything_is_done_end_it(operator, context) -> None:
    for attempt in range(1, operator.max_in_place + 1):
        with pytest.raises(JobPreemptedError):
            end(operator, context, lost(attempt, JobCause.PREEMPTED))
    with pytest.raises(JobFailedError, match="11 times in a row without a step further than 0"):
        end(operator, context, lost(11, JobCause.PREEMPTED))


def test_an_end_that_is_told_twice_is_counted_once(operator, context) -> None:
    for attempt, cause in ((1, None), (2, JobCause.OUT_OF_MEMORY)):
        for _ in range(2):
            with pytest.raises(JobLostError):
                end(operator, context, lost(attempt, cause))
    assert kept_losses(context) == Losses(attempt=2, others=1, divisor=2)


def test_memory_that_ran_out_halves_the_micro_batch_until_there_is_none(operator, context) -> None:
    for attempt, divisor in ((1, 2), (2, 4)):
        with pytest.raises(JobLostError, match="memory_bytes"):
            end(operator, context, lost(attempt, JobCause.OUT_OF_MEMORY, "out of memory (memory_bytes=5): x"))
        assert operator._after_losses(JOB, context).payload[PAYLOAD_KEY] == divisor
    with pytest.raises(JobFailedError, match="micro-batch of 4 samples cut into 8 does not fit"):
        end(operator, context, lost(3, JobCause.OUT_OF_MEMORY, "out of memory: x"))


def test_a_script_without_memory_is_not_tried_again(operator, context, monkeypatch) -> None:
    monkeypatch.setattr(operator, "_job", lambda: JOB.evolve(payload={"script": {}}))
    with pytest.raises(JobFailedError, match="script decides about its batches"):
        end(operator, context, lost(1, JobCause.OUT_OF_MEMORY, "out of memory: x"))


def test_other_losses_use_up_a_budget(operator, context) -> None:
    for attempt in range(1, 4):
        with pytest.raises(JobLostError):
            end(operator, context, lost(attempt, JobCause.HUNG if attempt == 2 else None))
    with pytest.raises(JobFailedError, match="it was lost 4 times"):
        end(operator, context, lost(4))


def test_what_an_older_release_kept_still_counts(context) -> None:
    context["task_state_store"].update(losses=2, micro_batch_divisor=4)
    assert kept_losses(context) == Losses(others=2, divisor=4)


def test_a_job_that_ended_with_its_lease_is_wanted_again_and_one_that_was_stopped_is_not(operator, context) -> None:
    stopped = lost(1).evolve(phase=JobPhase.STOPPED, reason="lease expired")
    with pytest.raises(JobLostError):
        end(operator, context, stopped.evolve(cause=JobCause.LEASE_EXPIRED))
    with pytest.raises(JobStoppedError):
        end(operator, context, stopped)


def test_progress_outlives_the_try(operator, context) -> None:
    with pytest.raises(JobPreemptedError):
        end(operator, context, lost(2, JobCause.PREEMPTED, step=7))
    kept = context["task_state_store"]["progress"]
    assert kept == {"step": 7, "eta_seconds": 12.5, "attempt": 2, "restarts": 0, "phase": "lost"}


def test_the_wait_ends_at_execution_timeout_and_not_for_the_engines_queue(operator, context) -> None:
    with pytest.raises(TaskDeferred) as waits:
        operator.poll_until_complete(JOB.name, context)
    assert waits.value.timeout is None, "it would count the queue, and leave the job running"
    trigger = waits.value.trigger
    assert trigger.deadline == Task.start_date.timestamp() + 7200
    assert trigger.limit_seconds == 7200
    operator.execution_timeout = None
    with pytest.raises(TaskDeferred) as waits:
        operator.poll_until_complete(JOB.name, context)
    assert (waits.value.trigger.deadline, waits.value.trigger.limit_seconds) == (None, None)
