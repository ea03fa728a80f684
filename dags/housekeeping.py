"""Housekeeping, every day at 03:00 UTC: reconcile jobs with reality, verify the registry and the audit log, tidy up.

- `settle_jobs` records the end of jobs that nobody followed to it, and removes job folders older than the retention.
- `verify_registry` reads every bundle back and checks every digest; a changed or missing object fails the task.
- `verify_audit` checks the hash chain of the audit log.
- `collect_garbage` says what nothing in the store names any more; with `delete_unnamed` it deletes it, a day later.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import Param, dag
from airflow.timetables.trigger import CronTriggerTimetable

from deepseek_ops.airflow.notifiers import ALERT_ON_FAILURE
from deepseek_ops.airflow.operators.housekeeping import (
    CollectGarbageOperator,
    SettleJobsOperator,
    VerifyAuditOperator,
    VerifyRegistryOperator,
)
from deepseek_ops.airflow.retry import RETRY_IF_TRANSIENT


@dag(
    schedule=CronTriggerTimetable("0 3 * * *", timezone="UTC", run_immediately=timedelta(0)),
    catchup=False,
    max_active_runs=1,
    default_args={
        "owner": "ml-platform",
        "retries": 2,
        "retry_delay": timedelta(minutes=1),
        "retry_policy": RETRY_IF_TRANSIENT,
        "on_failure_callback": ALERT_ON_FAILURE,
    },
    params={
        "keep_days": Param(
            14, type="number", minimum=0, title="Keep job folders (days)", description="Results live in the store."
        ),
        "delete_unnamed": Param(
            False,
            type="boolean",
            title="Delete what nothing names",
            description="Without it the store's collection only reports. Runs on schedule take this default.",
        ),
    },
    tags=["deepseek-ops", "operations"],
    doc_md=__doc__,
)
def housekeeping() -> None:
    SettleJobsOperator(task_id="settle_jobs", keep_days="{{ params.keep_days }}")
    VerifyRegistryOperator(task_id="verify_registry")
    VerifyAuditOperator(task_id="verify_audit")
    CollectGarbageOperator(task_id="collect_garbage", delete="{{ params.delete_unnamed }}")


housekeeping()
