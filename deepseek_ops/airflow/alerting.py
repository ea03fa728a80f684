"""What a training's guardian tells people, delivered over Airflow's own notifiers and connections.

The pipeline file says who is told and over which connection; credentials stay in the connections. What cannot be
delivered is logged: a notification never decides about a training.
"""

from __future__ import annotations

import hashlib
import html
import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import JsonValue

from deepseek_ops.airflow.notifiers import notifier_setting

if TYPE_CHECKING:
    from deepseek_ops.core.ports import Facts

DELIVERED = "notification"
"""Kind of the facts that say which notification has been delivered, so that nobody is told twice."""
_HTTP_SECONDS = 15.0

log = logging.getLogger(__name__)


def tell_people(event: Mapping[str, JsonValue], *, facts: Facts, job: str, run: str) -> None:
    """Deliver the notifications that an event of a job asks for, each once.

    A process that dies between a delivery and its note in the facts tells people again: never not at all. Events that
    a resumed training repeats (``repeated``) have been told.
    """
    wanted = event.get("notify")
    if not isinstance(wanted, list) or not wanted or event.get("repeated"):
        return
    for number, action in enumerate(wanted):
        if isinstance(action, dict):
            _once(action, event, facts=facts, job=job, run=run, number=number)


def _once(
    action: dict[str, JsonValue], event: Mapping[str, JsonValue], *, facts: Facts, job: str, run: str, number: int
) -> None:
    from deepseek_ops.core.errors import ObjectExistsError

    named = [job, str(event.get("attempt")), str(event.get("step")), str(event.get("rule")), str(number)]
    key = f"{job}/{hashlib.sha256(json.dumps(named).encode()).hexdigest()[:24]}"
    if facts.get(DELIVERED, key) is not None:
        return
    kind = str(action.get("type"))
    try:
        _DELIVER[kind](action, event, job, run)
    except Exception as error:  # noqa: BLE001  (whatever a provider or a server does, the training goes on)
        log.warning("the %s notification of %s at step %s was not delivered: %s", kind, job, event.get("step"), error)
        return
    log.info("told people by %s: %s", kind, event.get("reason"))
    try:
        facts.insert(DELIVERED, key, {"type": kind, "reason": str(event.get("reason"))[:500]}, run=run)
    except ObjectExistsError:
        return


def alert_text(event: Mapping[str, JsonValue], job: str, run: str) -> tuple[str, str]:
    """Return subject and one paragraph for people."""
    took = f"action {event.get('action')}"
    if event.get("max_attempts"):
        took += f", attempt {event.get('action_attempt')} of {event.get('max_attempts')}"
    subject = f"[deepseek-ops] {event.get('severity') or 'alert'}: {event.get('rule')} at step {event.get('step')}"
    return subject[:200], f"{event.get('reason')}; {took}. Job {job}, run {run}."


def _email(action: Mapping[str, JsonValue], event: Mapping[str, JsonValue], job: str, run: str) -> None:
    recipients = action.get("recipients")
    _mail([str(one) for one in recipients] if isinstance(recipients, list) else [], event, job, run)


def _mail(recipients: list[str], event: Mapping[str, JsonValue], job: str, run: str) -> None:
    from airflow.providers.smtp.notifications.smtp import SmtpNotifier

    subject, text = alert_text(event, job, run)
    SmtpNotifier(
        to=recipients,
        from_email=notifier_setting("alert_from") or None,
        subject=subject,
        html_content=f"<p>{html.escape(text)}</p>",
        smtp_conn_id=notifier_setting("alert_smtp_conn_id") or "smtp_default",
    ).notify({})


def _slack(action: Mapping[str, JsonValue], event: Mapping[str, JsonValue], job: str, run: str) -> None:
    from airflow.providers.slack.notifications.slack import SlackNotifier

    subject, text = alert_text(event, job, run)
    SlackNotifier(
        slack_conn_id=str(action.get("connection") or "slack_default"),
        channel=str(action.get("channel")),
        text=f"{subject}\n{text}",
    ).notify({})


def _http(action: Mapping[str, JsonValue], event: Mapping[str, JsonValue], job: str, run: str) -> None:
    body = {**event, "job": job, "run": run}
    if url := str(action.get("url") or ""):
        import httpx

        httpx.post(url, json=body, timeout=_HTTP_SECONDS, follow_redirects=False).raise_for_status()
        return
    _post(str(action.get("connection")), body)


def _page(action: Mapping[str, JsonValue], event: Mapping[str, JsonValue], job: str, run: str) -> None:
    """Post to the pager's connection; without one anywhere, the mail addresses of the failure alerts are used."""
    connection = str(action.get("connection") or notifier_setting("page_conn_id"))
    if connection:
        _post(connection, {**event, "job": job, "run": run})
        return
    recipients = [item.strip() for item in notifier_setting("alert_emails").split(",") if item.strip()]
    if not recipients:
        raise LookupError("nobody is on call: set [deepseek_ops] page_conn_id or alert_emails")
    _mail(recipients, event, job, run)


def _post(connection: str, body: Mapping[str, Any]) -> None:
    from airflow.providers.http.hooks.http import HttpHook

    hook = HttpHook(method="POST", http_conn_id=connection)
    hook.run(endpoint="", json=body, extra_options={"timeout": _HTTP_SECONDS, "allow_redirects": False})


_DELIVER = {"email": _email, "slack": _slack, "http": _http, "page": _page}
