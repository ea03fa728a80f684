"""Deadline alerts of whole runs: Airflow tells people when one is not over in time. It goes on: an alert ends nothing.

``[deepseek_ops] run_deadline_hours`` says after how many hours since a run was queued, as one number or several
(``24, 72``); without it there are none. The alert goes to the pager's connection (``page_conn_id``) and to the mail
addresses of the failure alerts (``alert_emails``), from the triggerer. Airflow has deadline alerts from 3.1 on.

What ends a run is another matter: ``training.budget`` and a task's ``execution_timeout``.
"""

from __future__ import annotations

import asyncio
import html
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from deepseek_ops.airflow.notifiers import SECTION, notifier_setting
from deepseek_ops.core.errors import PermanentError

SETTING = "run_deadline_hours"
_HTTP_SECONDS = 15.0
log = logging.getLogger(__name__)


@dataclass(eq=False)
class DeadlineSettingError(PermanentError):
    """The setting of the deadlines holds something else."""

    value: str

    def __str__(self) -> str:
        return f"[{SECTION}] {SETTING} = {self.value!r} is no list of hours; write 24, or 24, 72, or leave it out."


def run_deadlines() -> dict[str, Any]:
    """Return what ``@dag`` is given beside its other arguments: ``deadline``, or nothing where none is configured.

    Raises DeadlineSettingError.
    """
    hours = _hours(notifier_setting(SETTING))
    if not hours:
        return {}
    try:
        from airflow.sdk.definitions.callback import AsyncCallback
        from airflow.sdk.definitions.deadline import DeadlineAlert, DeadlineReference
    except ImportError:
        log.warning("[%s] %s is set, and this Airflow has no deadline alerts", SECTION, SETTING)
        return {}
    alerts = [
        DeadlineAlert(
            reference=DeadlineReference.DAGRUN_QUEUED_AT,
            interval=timedelta(hours=limit),
            callback=AsyncCallback(tell_late, kwargs={"hours": limit}),
            name=f"not over {limit:g} h after it was queued",
        )
        for limit in hours
    ]
    return {"deadline": alerts}


async def tell_late(hours: float, context: Mapping[str, Any]) -> str:
    """Tell people of a run that is not over; return what they were told. Airflow calls it in the triggerer."""
    message = late_message(hours, context)
    log.error("%s", message["subject"])
    await asyncio.to_thread(_deliver, message)
    return message["subject"]


def late_message(hours: float, context: Mapping[str, Any]) -> dict[str, str]:
    """Return subject, text and facts of the alert. ``context`` holds the run as Airflow's API shows it."""
    found = context.get("dag_run")
    run: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
    dag, name = str(run.get("dag_id") or "a run"), str(run.get("dag_run_id") or "")
    subject = f"[deepseek-ops] {dag} is not over {hours:g} h after it was queued"
    text = (
        f"Run {name} is {run.get('state')}; queued {run.get('queued_at')}, begun {run.get('start_date')}. It goes on."
    )
    return {"subject": subject, "text": text, "dag": dag, "run": name, "state": str(run.get("state") or "")}


def _deliver(message: Mapping[str, str]) -> None:
    """Tell everybody who is to be told; one that cannot be reached keeps nobody else from being told."""
    connection = notifier_setting("page_conn_id")
    recipients = [item.strip() for item in notifier_setting("alert_emails").split(",") if item.strip()]
    if not connection and not recipients:
        log.warning("nobody is told of it: set [%s] page_conn_id or alert_emails", SECTION)
    if connection:
        _attempt("the pager", lambda: _post(connection, message))
    if recipients:
        _attempt("mail", lambda: _mail(recipients, message))


def _attempt(what: str, send: Callable[[], None]) -> None:
    try:
        send()
    except Exception as error:  # noqa: BLE001  (whatever a provider or a server does, the others are told)
        log.warning("the alert was not delivered by %s: %s", what, error)


def _post(connection: str, message: Mapping[str, str]) -> None:
    from airflow.providers.http.hooks.http import HttpHook

    body = {**message, "rule": "run_deadline", "reason": message["subject"]}
    hook = HttpHook(method="POST", http_conn_id=connection)
    hook.run(endpoint="", json=body, extra_options={"timeout": _HTTP_SECONDS, "allow_redirects": False})


def _mail(recipients: list[str], message: Mapping[str, str]) -> None:
    from airflow.providers.smtp.notifications.smtp import SmtpNotifier

    SmtpNotifier(
        to=recipients,
        from_email=notifier_setting("alert_from") or None,
        subject=message["subject"],
        html_content=f"<p>{html.escape(message['text'])}</p>",
        smtp_conn_id=notifier_setting("alert_smtp_conn_id") or "smtp_default",
    ).notify({})


def _hours(text: str) -> list[float]:
    """Return the hours that the setting lists. Raises DeadlineSettingError."""
    try:
        hours = [float(item) for item in text.split(",") if item.strip()]
    except ValueError:
        raise DeadlineSettingError(text) from None
    if not all(math.isfinite(limit) and limit > 0 for limit in hours):
        raise DeadlineSettingError(text)
    return hours
