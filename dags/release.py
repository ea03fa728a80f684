"""Release a registered model version: verify its bundle, ask for approval where the policy says so, tag, deploy.

`retrain` starts it for branches that may release; a release manager starts it by hand for any registered version.
The answer to **approve** is given in the Airflow UI (Required Actions) or through its API.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.standard.operators.hitl import ApprovalOperator
from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import Param, dag

from deepseek_ops.airflow.assets import RELEASE
from deepseek_ops.airflow.notifiers import ALERT_ON_FAILURE
from deepseek_ops.airflow.operators.release import (
    ApprovalNeededOperator,
    CreateReleaseOperator,
    LoadModelVersionOperator,
)
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
        "repository": Param(
            "deepseek_ops_git", type="string", title="Repository", description="Airflow connection of type git."
        ),
        "model": Param(type="string", title="Model", description="Registered name, such as deepseek-tiny."),
        "version": Param(
            type="string", title="Version", pattern=r"^\d+\.\d+\.\d+$", description="Registered version, such as 0.1.0."
        ),
    },
    tags=["deepseek-ops", "release"],
    doc_md=__doc__,
)
def release() -> None:
    version = LoadModelVersionOperator(
        task_id="load_version", model="{{ params.model }}", version="{{ params.version }}"
    )
    needed = ApprovalNeededOperator(
        task_id="approval_needed", version=version.output, approve="approve", otherwise="create_release"
    )
    approve = ApprovalOperator(
        task_id="approve",
        subject="Release {{ params.model }} {{ params.version }}?",
        body="Metrics: `{{ ti.xcom_pull('load_version')['metrics'] }}`\n\n"
        "Commit: `{{ ti.xcom_pull('load_version')['manifest']['source']['commit'] }}`\n\n"
        "Bundle: `{{ ti.xcom_pull('load_version')['bundle'] }}`",
    )
    released = CreateReleaseOperator(
        task_id="create_release",
        version=version.output,
        approval=approve.output,
        outlets=[RELEASE],
        trigger_rule="none_failed_min_one_success",
    )
    start_deploy = TriggerDagRunOperator(
        task_id="start_deploy",
        trigger_dag_id="deploy",
        trigger_run_id="deploy__{{ params.model }}-{{ params.version }}__{{ run_id }}",
        conf={"model": "{{ params.model }}", "version": "{{ params.version }}"},
        skip_when_already_exists=True,
    )
    needed >> [approve, released]
    released >> start_deploy


release()
