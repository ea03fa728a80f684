"""Ingest a settled upload: copy the raw objects into the store as an immutable set and announce it as an asset.

Starts when an upload below the lake connection's prefix has settled (a `_READY` marker, or no change for five
minutes), or by hand. `retrain` is scheduled by the asset this DAG produces.
"""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import Param, dag

from deepseek_ops.airflow.assets import DATASET, RAW_DATA
from deepseek_ops.airflow.notifiers import ALERT_ON_FAILURE
from deepseek_ops.airflow.operators.data import IngestDatasetOperator
from deepseek_ops.airflow.retry import RETRY_IF_TRANSIENT


@dag(
    schedule=[RAW_DATA],
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
    IngestDatasetOperator(task_id="ingest", uri="{{ params.uri }}", dataset="{{ params.dataset }}", outlets=[DATASET])


ingest_dataset()
