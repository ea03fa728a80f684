"""The Airflow plugin. It registers; it computes nothing and opens nothing when it is imported."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin


class DeepSeekOpsPlugin(AirflowPlugin):
    """Registered by the entry point ``airflow.plugins``, or by ``plugins/`` where the package is only on the path."""

    name = "deepseek_ops"
