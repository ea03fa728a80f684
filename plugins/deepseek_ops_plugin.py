"""Registers the plugin where deepseek-ops is on the path but not installed (its entry point is then missing).

The same plugin name twice is an import error in Airflow, so this shim steps aside when the entry point exists.
"""

from importlib.metadata import entry_points

if not any(point.name == "deepseek_ops" for point in entry_points(group="airflow.plugins")):
    from deepseek_ops.airflow.plugin import DeepSeekOpsPlugin  # noqa: F401  (Airflow collects the class)
