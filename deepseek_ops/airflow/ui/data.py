"""The data pages inside Airflow's API server, for people who are logged in there.

They show what the connection of the object store can read, so they are for those who may see that connection.
"""

from __future__ import annotations

from typing import Any

from deepseek_ops.airflow.hooks import StoreHook
from deepseek_ops.data import DatasetRepository
from deepseek_ops.web.data_pages import data_app


def build_data_app() -> Any:
    """Return the application over the store of ``deepseek_ops_store``; it is opened by the first request."""
    from deepseek_ops.airflow.ui.lfs import airflow_person

    return data_app(_opened, authorise=airflow_person("read"))


def _opened() -> DatasetRepository:
    return StoreHook().datasets
