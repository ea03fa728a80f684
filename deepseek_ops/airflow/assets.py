"""The assets our DAGs are scheduled by and produce: the model repository, datasets, models, releases.

Names are stable: Airflow knows an asset by its name and URI, and its watermarks hang on them.
"""

from __future__ import annotations

import os
from typing import Any

from airflow.sdk import Asset, AssetWatcher
from airflow.sdk.definitions.asset import Dataset, Model

from deepseek_ops.airflow.triggers.data import ManifestTrigger
from deepseek_ops.airflow.triggers.git import GitRefTrigger
from deepseek_ops.airflow.triggers.schedule import PipelineScheduleTrigger
from deepseek_ops.airflow.triggers.tags import PushedTagTrigger

MODEL_REPOSITORY = Asset(
    name="deepseek_ops_model_repository",
    uri="deepseek-ops://repository/deepseek_ops_git",
    group="repository",
    watchers=[
        AssetWatcher(
            name="pushes",
            trigger=GitRefTrigger(
                git_conn_id="deepseek_ops_git",
                asset_name="deepseek_ops_model_repository",
                refs=["refs/heads/*"],
                pipeline_file="deepseek.yaml",
                poll_interval=5.0,
                claimed=True,
            ),
        )
    ],
)
"""One event for each push that the pushed commit's own ``deepseek.yaml`` wants: branches and paths."""

MODEL_TAGS = Asset(
    name="deepseek_ops_model_tags",
    uri="deepseek-ops://repository/deepseek_ops_git/tags",
    group="repository",
    watchers=[
        AssetWatcher(
            name="tags",
            trigger=PushedTagTrigger(
                git_conn_id="deepseek_ops_git",
                asset_name="deepseek_ops_model_tags",
                refs=["refs/tags/*"],
                pipeline_file="deepseek.yaml",
                poll_interval=5.0,
                claimed=True,
            ),
        )
    ],
)
"""One event for each tag that somebody pushes and the tagged commit's own ``deepseek.yaml`` wants."""

MODEL_SCHEDULE = Asset(
    name="deepseek_ops_model_schedule",
    uri="deepseek-ops://repository/deepseek_ops_git/schedule",
    group="repository",
    watchers=[
        AssetWatcher(
            name="schedule",
            trigger=PipelineScheduleTrigger(
                git_conn_id="deepseek_ops_git",
                asset_name="deepseek_ops_model_schedule",
                refs=["refs/heads/main"],
                pipeline_file="deepseek.yaml",
                poll_interval=5.0,
            ),
        )
    ],
)
"""One event when a ``schedule`` trigger of main's own ``deepseek.yaml`` is due."""

RAW_DATA = Asset(
    name="deepseek_ops_raw_data",
    uri="deepseek-ops://data/raw",
    group="dataset",
    watchers=[
        AssetWatcher(
            name="arrivals",
            trigger=ManifestTrigger(
                store_conn_id="deepseek_ops_lake",
                asset_name="deepseek_ops_raw_data",
                prefix="",
                settle=300.0,
                poll_interval=60.0,
                depth=int(os.environ.get("DEEPSEEK_OPS_UPLOAD_DEPTH", "0")),
                queue=os.environ.get("DEEPSEEK_OPS_UPLOAD_QUEUE", ""),
                queue_conn_id=os.environ.get("DEEPSEEK_OPS_UPLOAD_QUEUE_CONN", "aws_default"),
            ),
        )
    ],
)
"""One event for each settled upload below the lake connection's prefix.

``DEEPSEEK_OPS_UPLOAD_DEPTH=1`` makes each folder there an upload of its own. ``DEEPSEEK_OPS_UPLOAD_QUEUE`` is the URL
of an SQS queue with the bucket's notifications, ``DEEPSEEK_OPS_UPLOAD_QUEUE_CONN`` its AWS connection.
"""

SETTLED_UPLOAD = Asset(name="deepseek_ops_settled_upload", uri="deepseek-ops://data/settled-upload", group="dataset")
"""One partition for each upload, with its announcement in ``extra["arrivals"][partition key]``."""


def per_partition(asset: Asset) -> Any:
    """Return the schedule that starts a run for each partition of an asset (Airflow 3.2), or for each event before."""
    try:
        from airflow.sdk import PartitionedAssetTimetable
    except ImportError:
        return [asset]
    return PartitionedAssetTimetable(assets=asset)


DATASET = Dataset(name="deepseek_ops_dataset", uri="deepseek-ops://data/dataset")
"""A new version of an ingested dataset."""

MODEL = Model(name="deepseek_ops_model", uri="deepseek-ops://registry/model")
"""A new version in the registry."""

RELEASE = Model(name="deepseek_ops_release", uri="deepseek-ops://registry/release")
"""A released version: an annotated tag in the model repository."""
