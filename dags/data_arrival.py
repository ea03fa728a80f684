"""Take the uploads that arrived apart: one event, and so one run of `ingest_dataset`, for each of them.

Starts when the watcher of the data lake announces uploads that are complete: a `_READY` marker, a manifest all of whose
objects are there, or no change for five minutes; and twice an hour, for announcements that started no run. Airflow
collapses announcements that come together into one run, and a restarted triggerer may announce twice; this run gives
each upload a partition of its own, once.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import dag
from airflow.timetables.assets import AssetOrTimeSchedule
from airflow.timetables.trigger import CronTriggerTimetable

from deepseek_ops.airflow.assets import RAW_DATA, SETTLED_UPLOAD
from deepseek_ops.airflow.notifiers import ALERT_ON_FAILURE
from deepseek_ops.airflow.operators.arrival import AnnounceArrivalsOperator
from deepseek_ops.airflow.retry import RETRY_IF_TRANSIENT


@dag(
    schedule=AssetOrTimeSchedule(
        timetable=CronTriggerTimetable("*/30 * * * *", timezone="UTC", run_immediately=timedelta(0)), assets=RAW_DATA
    ),
    catchup=False,
    max_active_runs=1,
    default_args={
        "owner": "ml-platform",
        "retries": 3,
        "retry_delay": timedelta(seconds=15),
        "retry_policy": RETRY_IF_TRANSIENT,
        "on_failure_callback": ALERT_ON_FAILURE,
    },
    tags=["deepseek-ops", "data"],
    doc_md=__doc__,
)
def data_arrival() -> None:
    AnnounceArrivalsOperator(task_id="announce", watched=RAW_DATA, outlets=[SETTLED_UPLOAD])


data_arrival()
