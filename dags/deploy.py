"""Deploy a released version: start it, check that it answers, move the traffic as its strategy says, promote it.

The first version of an endpoint takes all traffic once it answers. Later ones are rolled out blue-green, canary or
shadow (`deployment.strategy`); a breach sends all traffic back to the version that served before, at once.
Every look is stored, so a run that is cleared goes on where it was.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import Param, dag

from deepseek_ops.airflow.notifiers import ALERT_ON_FAILURE
from deepseek_ops.airflow.operators.release import LoadModelVersionOperator
from deepseek_ops.airflow.operators.rollout import PromoteOperator, RollOutOperator, StartServingOperator
from deepseek_ops.airflow.retry import RETRY_IF_TRANSIENT


@dag(
    schedule=None,
    max_active_runs=1,
    default_args={
        "owner": "release-managers",
        "retries": 3,
        "retry_delay": timedelta(seconds=15),
        "retry_policy": RETRY_IF_TRANSIENT,
        "on_failure_callback": ALERT_ON_FAILURE,
    },
    params={
        "model": Param(type="string", title="Model", description="Registered name, such as deepseek-tiny."),
        "version": Param(
            type="string", title="Version", pattern=r"^\d+\.\d+\.\d+$", description="Released version, such as 0.1.0."
        ),
    },
    tags=["deepseek-ops", "delivery"],
    doc_md=__doc__,
)
def deploy() -> None:
    version = LoadModelVersionOperator(
        task_id="load_version", model="{{ params.model }}", version="{{ params.version }}"
    )
    candidate = StartServingOperator(task_id="start_serving", version=version.output)
    rollout = RollOutOperator(task_id="roll_out", version=version.output, candidate=candidate.output)
    PromoteOperator(task_id="promote", version=version.output, rollout=rollout.output)


deploy()
