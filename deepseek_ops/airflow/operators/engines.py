"""Which connection's engine a run's training goes to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deepseek_ops.airflow.hooks import LauncherHook

if TYPE_CHECKING:
    from deepseek_ops.core.config import PipelineFile


def launcher_for(conn_id: str, config: PipelineFile) -> LauncherHook:
    """Return the hook of the connection whose engine the pipeline file names in ``training.engine``.

    That is ``conn_id`` where it is this engine's, else ``<conn_id>_<engine>``, such as ``deepseek_ops_launcher_ray``:
    small jobs stay on the first while trainings go to the cluster.
    """
    hook: Any = LauncherHook(conn_id)
    if config.training.engine in ("local", hook.settings().engine):
        return hook  # type: ignore[no-any-return]
    return LauncherHook(f"{conn_id}_{config.training.engine}")
