"""The end of every attempt of a training becomes a fact that the next one's checkpoint interval is made of."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fixtures_triggers import connect

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.airflow.operators.training import DeepSpeedTrainOperator, note_end
from deepseek_ops.airflow.operators.tuning import RunTrialOperator
from deepseek_ops.core.errors import JobLostError
from deepseek_ops.core.jobs import JobCause, JobPhase, JobSpec, JobStatus
from deepseek_ops.core.records import DatasetVersion, Hyperparameters, TrainingPlan
from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.training_pace import Pace
from deepseek_ops.pipeline.interruptions import READ, history_at, note_attempt
from deepseek_ops.training.intervals import PAYLOAD_KEY, History

JOB = JobSpec(name="train-a", kind="train", payload={"plan": {}}, num_nodes=2)
PLAN = TrainingPlan(
    dataset=DatasetVersion(name="corpus", version="a" * 64, tree="b" * 64, num_files=1, num_bytes=1),
    model={"model_type": "deepseek_v3"},
    hyperparameters=Hyperparameters(learning_rate=0.001, batch_size=8, max_steps=2),
    checkpoint_steps="auto",
)


@pytest.fixture
def facts(tmp_path: Path) -> Any:
    return open_facts(f"sqlite:///{tmp_path / 'facts.db'}")


def ended(phase: JobPhase, reason: str = "", *, attempt: int = 1, cause: JobCause | None = None) -> JobStatus:
    return JobStatus(name=JOB.name, phase=phase, reason=reason, cause=cause, attempt=attempt, wall_seconds=1800)


def task(facts: Any, plan: TrainingPlan = PLAN, where: str = "spot") -> Any:
    return SimpleNamespace(plan=plan.dump(), facts=facts, launcher_hook=SimpleNamespace(conn_id=where))


def test_lost_machines_are_counted_over_machine_hours_once_for_each_attempt_and_connection(facts: Any) -> None:
    assert history_at(facts, "spot") == History()
    for status in (
        ended(JobPhase.LOST, "the engine took its machines away"),
        ended(JobPhase.LOST, "the engine took its machines away"),
        ended(JobPhase.LOST, "on rank 3", attempt=2, cause=JobCause.OUT_OF_MEMORY),
        ended(JobPhase.STOPPED, "enough", attempt=3),
        ended(JobPhase.SUCCEEDED, attempt=4),
    ):
        note_end(task(facts), JOB, status)
    note_end(task(facts, where="spot_b"), JOB, ended(JobPhase.LOST))
    assert history_at(facts, "spot") == History(1, 4 * 2 * 1800)
    assert history_at(facts, "spot_b") == History(1, 2 * 1800)


def test_a_lost_trial_counts_as_a_lost_training_does(facts: Any, tmp_path: Path, monkeypatch: Any) -> None:
    connect(monkeypatch, "deepseek_ops_store", conn_type="deepseek_store", host=f"file://{tmp_path / 'store'}")
    connect(monkeypatch, "deepseek_ops_facts", conn_type="deepseek_facts", host=f"sqlite:///{tmp_path / 'facts.db'}")
    connect(monkeypatch, "spot", conn_type="deepseek_launcher", host=str(tmp_path / "jobs"))
    trial = RunTrialOperator(task_id="trial", run="", dataset="", number=0, launcher_conn_id="spot")
    for attempt, cause in enumerate((JobCause.PREEMPTED, JobCause.OUT_OF_MEMORY), start=1):
        status = ended(JobPhase.LOST, reason := str(cause), attempt=attempt, cause=cause)
        for _ in range(2):
            with pytest.raises(JobLostError, match=reason):
                trial.conclude(JOB, status, {"run_id": "r"})
    assert history_at(facts, "spot") == History(1, 2 * 2 * 1800)


def test_the_next_training_is_told_and_its_interval_takes_it_in(facts: Any, tmp_path: Path) -> None:
    for number in range(3):
        other = JOB.evolve(name=f"train-{number}")
        note_attempt(facts, other, ended(JobPhase.LOST), where="spot", lost_machines=True)
    told = DeepSpeedTrainOperator._after_interruptions(task(facts), JOB)
    assert (told.name, told.payload[PAYLOAD_KEY]) == (JOB.name, {"interruptions": 3, "machine_seconds": 10800.0})
    pace = Pace.of(JobContext(told, tmp_path), PLAN, nodes=2)
    quiet = Pace.of(JobContext(JOB, tmp_path), PLAN, nodes=2)
    means = [one.planned(interruptions=0, before_seconds=0).mtbf_seconds for one in (pace, quiet)]
    assert means[0] == pytest.approx((86400 + 10800) / 2 / 4)
    assert means[1] == 86400 / 2
    fixed = PLAN.evolve(checkpoint_steps=50)
    assert DeepSpeedTrainOperator._after_interruptions(task(facts, fixed), JOB) == JOB


def test_only_the_newest_attempts_are_read(facts: Any) -> None:
    for attempt in range(1, READ + 12):
        phase = JobPhase.LOST if attempt <= 10 else JobPhase.SUCCEEDED
        note_attempt(facts, JOB, ended(phase, attempt=attempt), where="spot", lost_machines=True)
    assert history_at(facts, "spot").interruptions == 0
