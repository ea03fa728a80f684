"""Links on a task in Airflow's grid: the training's own page, and the engine's page of its job.

Airflow stores a link when a try has ended. A training's links are for the hours before that, so the operator pushes
them at the start under the same keys; what is stored at the end is the same again.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from airflow.sdk import BaseOperatorLink, conf

from deepseek_ops.core.errors import DeepSeekOpsError, InvalidRecordError

if TYPE_CHECKING:
    from airflow.sdk import BaseOperator, Context

log = logging.getLogger(__name__)

TRAINING_PATH = "deepseek-ops/training"


class TrainingRunLink(BaseOperatorLink):
    """Our page of the training: curves, events, machines."""

    name = "Training"

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        """Return the page's address; empty before the plan is known."""
        return training_page(getattr(operator, "plan", None))


class EngineLink(BaseOperatorLink):
    """The page of the job in the interface of the engine that runs it."""

    name = "Engine"

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        """Return what the engine said when it was asked to start the job; empty where it has no pages."""
        asked = getattr(operator, "engine_page", None)
        return web_address(asked()) if callable(asked) else ""


def training_page(plan: Any) -> str:
    """Return the address of a plan's page; empty for what is no plan."""
    from deepseek_ops.core.records import TrainingPlan

    if not isinstance(plan, dict):  # not rendered: the task ended before it knew
        return ""
    try:
        fingerprint = TrainingPlan.load(plan).fingerprint
    except InvalidRecordError:
        return ""
    base = str(conf.get("api", "base_url", fallback="") or "").rstrip("/")
    return f"{base}/{TRAINING_PATH}/runs/{fingerprint}"


def web_address(url: str) -> str:
    """Return the address if people may be sent there: http or https, without a login inside."""
    parts = urlsplit(url)
    return url if parts.scheme in ("http", "https") and parts.hostname and not parts.username else ""


def push_links(operator: BaseOperator, context: Context, *links: BaseOperatorLink) -> None:
    """Store the links now, so that they are there while the task runs. One that has no address is left out.

    An engine that does not answer costs a link and not the training.
    """
    ti: Any = context["ti"]
    for link in links:
        try:
            url = link.get_link(operator, ti_key=ti)
        except DeepSeekOpsError as error:
            log.warning("no link %r: %s", link.name, error)
            continue
        if url:
            ti.xcom_push(key=link.xcom_key, value=url)
