"""The Airflow plugin. It registers; it computes nothing and opens nothing when it is imported."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin

from deepseek_ops.airflow.ui.late import LateApp


class DeepSeekOpsPlugin(AirflowPlugin):
    """Registered by the entry point ``airflow.plugins``, or by ``plugins/`` where the package is only on the path."""

    name = "deepseek_ops"
    # Airflow does not guard these: each application asks for a token of ours or for an Airflow login itself.
    fastapi_apps = [  # noqa: RUF012  (Airflow's own form)
        {
            "app": LateApp("deepseek_ops.airflow.ui.lfs:build_lfs_app"),
            "url_prefix": "/deepseek-ops/lfs",
            "name": "deepseek-ops Git LFS",
        },
        {
            "app": LateApp("deepseek_ops.airflow.ui.lfs:build_token_app"),
            "url_prefix": "/deepseek-ops/lfs-tokens",
            "name": "deepseek-ops Git LFS tokens",
        },
        {
            "app": LateApp("deepseek_ops.airflow.ui.data:build_data_app"),
            "url_prefix": "/deepseek-ops/data",
            "name": "deepseek-ops datasets",
        },
        {
            "app": LateApp("deepseek_ops.airflow.ui.lineage:build_lineage_app"),
            "url_prefix": "/deepseek-ops/lineage",
            "name": "deepseek-ops lineage",
        },
        {
            "app": LateApp("deepseek_ops.airflow.ui.training:build_training_app"),
            "url_prefix": "/deepseek-ops/training",
            "name": "deepseek-ops training",
        },
        {
            "app": LateApp("deepseek_ops.airflow.ui.hooks:build_hooks_app"),
            "url_prefix": "/deepseek-ops/hooks",
            "name": "deepseek-ops webhooks",
        },
    ]
    # Entries of Airflow's menu. What they show asks for a login like all of the above.
    # The paths are relative: they follow the path prefix of the API server.
    external_views = [  # noqa: RUF012
        {
            "name": "Training",
            "href": "deepseek-ops/training/",
            "url_route": "deepseek-ops-training",
            "destination": "nav",
            "category": "browse",
        },
        {
            "name": "Model lineage",
            "href": "deepseek-ops/lineage/",
            "url_route": "deepseek-ops-lineage",
            "destination": "nav",
            "category": "browse",
        },
        {
            "name": "Datasets",
            "href": "deepseek-ops/data/",
            "url_route": "deepseek-ops-datasets",
            "destination": "nav",
            "category": "browse",
        },
    ]
