"""Ingest a settled upload: copy the raw objects into the store as an immutable set and announce it as an asset.

Starts for each upload that `data_arrival` tells of, or by hand. A run that an upload started ingests exactly what was
announced, beside what was ingested before; one that was started by hand what lies below `uri`. `retrain` is scheduled
by the asset this DAG produces.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import Param, dag

from deepseek_ops.airflow.assets import DATASET, SETTLED_UPLOAD, per_partition
from deepseek_ops.airflow.notifiers import ALERT_ON_FAILURE
from deepseek_ops.airflow.operators.arrival import IngestArrivalOperator
from deepseek_ops.airflow.retry import RETRY_IF_TRANSIENT


@dag(
    schedule=per_partition(SETTLED_UPLOAD),
    max_active_runs=1,
    default_args={
        "owner": "ml-platform",
        "retries": 3,
        "retry_delay": timedelta(seconds=15),
        "retry_policy": RETRY_IF_TRANSIENT,
        "on_failure_callback": ALERT_ON_FAILURE,
    },
    params={
        "uri": Param(
            "s3://data-lake/raw/deepseek/", type="string", title="URI", description="Prefix of the upload in the lake."
        ),
        "dataset": Param("deepseek-corpus", type="string", title="Dataset", description="Name of the dataset."),
    },
    tags=["deepseek-ops", "data"],
    doc_md=__doc__,
)
def ingest_dataset() -> None:
    IngestArrivalOperator(task_id="ingest", uri="{{ params.uri }}", dataset="{{ params.dataset }}", outlets=[DATASET])


ingest_dataset()
