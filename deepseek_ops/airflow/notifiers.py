"""Failure alerts: what is sent, to whom, over Airflow's own notifiers.

Recipients and transport come from the ``[deepseek_ops]`` section of Airflow's configuration, so no DAG changes when
the team does: ``alert_emails`` (comma separated), ``alert_smtp_conn_id`` (default ``smtp_default``), ``alert_from``,
and ``page_conn_id``, the connection that pages of a training's guardian go to. Without recipients the alert is one line
in the task's log. A notifier never fails the task's state: what cannot be sent is logged.
"""

from __future__ import annotations

import html
from typing import Any

from airflow.sdk import BaseNotifier, conf

SECTION = "deepseek_ops"


class FailureAlert(BaseNotifier):
    """Tell people that a task has failed for good: which run of which commit, why, and where to look."""

    def notify(self, context: Any) -> None:
        message = failure_message(context)
        self.log.error("%s", message["subject"])
        recipients = [item.strip() for item in notifier_setting("alert_emails").split(",") if item.strip()]
        if not recipients:
            return
        try:
            from airflow.providers.smtp.notifications.smtp import SmtpNotifier

            SmtpNotifier(
                to=recipients,
                from_email=notifier_setting("alert_from") or None,
                subject=message["subject"],
                html_content=message["html"],
                smtp_conn_id=notifier_setting("alert_smtp_conn_id") or "smtp_default",
            ).notify(context)
        except Exception as error:  # noqa: BLE001  (an alert that cannot be sent must not hide the failure it is about)
            self.log.warning("the failure alert was not sent: %s", error)


def failure_message(context: Any) -> dict[str, str]:
    """Return subject and HTML body of the alert for a failed task."""
    ti = context["ti"]
    error = str(context.get("exception") or "no reason was reported")
    index = "" if getattr(ti, "map_index", -1) < 0 else f"[{ti.map_index}]"
    where = f"{ti.dag_id}.{ti.task_id}{index}"
    rows = {
        "Task": where,
        "Run": str(ti.run_id),
        "Try": str(getattr(ti, "try_number", "")),
        "Reason": error,
        "Log": str(getattr(ti, "log_url", "") or ""),
    }
    body = "".join(f"<tr><th align=left>{key}</th><td>{html.escape(value)}</td></tr>" for key, value in rows.items())
    one_line = " ".join(error.split())
    return {"subject": f"[deepseek-ops] {where} failed: {one_line[:160]}", "html": f"<table>{body}</table>"}


def notifier_setting(name: str) -> str:
    """Return a setting of our section of Airflow's configuration; empty where there is none."""
    return str(conf.get(SECTION, name, fallback="") or "")


ALERT_ON_FAILURE = FailureAlert()
"""The callback every DAG of ours uses."""
