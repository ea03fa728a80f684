"""Reaper, every five minutes: no job on a scale-out engine outlives the interest in it.

- A job whose lease nobody renewed is cancelled in its engine; it checkpoints in its grace.
- A process of the engine that no attempt in the store stands for is cancelled: its starter died between two steps.
- What has ended and is on record is removed from the engine's own list.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag
from airflow.timetables.trigger import CronTriggerTimetable

from deepseek_ops.airflow.notifiers import ALERT_ON_FAILURE
from deepseek_ops.airflow.operators.housekeeping import ReapJobsOperator
from deepseek_ops.airflow.retry import RETRY_IF_TRANSIENT


@dag(
    schedule=CronTriggerTimetable("*/5 * * * *", timezone="UTC"),
    catchup=False,
    max_active_runs=1,
    default_args={
        "owner": "ml-platform",
        "retries": 2,
        "retry_delay": timedelta(minutes=1),
        "retry_policy": RETRY_IF_TRANSIENT,
        "on_failure_callback": ALERT_ON_FAILURE,
    },
    tags=["deepseek-ops", "operations"],
    doc_md=__doc__,
)
def reap_jobs() -> None:
    ReapJobsOperator(task_id="reap")


reap_jobs()
