"""The failure alert: a real message on a real SMTP server, and a failure that is never hidden by it."""

from __future__ import annotations

import email
import json
from types import SimpleNamespace

import pytest
from aiosmtpd.controller import Controller

from deepseek_ops.airflow.notifiers import FailureAlert, failure_message
from deepseek_ops.core.errors import StoreUnavailableError
from deepseek_ops.embedded.processes import free_port


class Inbox:
    def __init__(self) -> None:
        self.messages: list[tuple[list[str], email.message.Message]] = []

    async def handle_DATA(self, server, session, envelope):  # noqa: N802  (aiosmtpd's name)
        self.messages.append((envelope.rcpt_tos, email.message_from_bytes(envelope.content)))
        return "250 OK"


@pytest.fixture
def inbox(monkeypatch):
    box = Inbox()
    controller = Controller(box, hostname="127.0.0.1", port=free_port())
    controller.start()
    monkeypatch.setenv(
        "AIRFLOW_CONN_SMTP_DEFAULT",
        json.dumps(
            {
                "conn_type": "smtp",
                "host": "127.0.0.1",
                "port": controller.port,
                "extra": {"disable_ssl": True, "disable_tls": True, "from_email": "ops@example.com"},
            }
        ),
    )
    monkeypatch.setenv("AIRFLOW__DEEPSEEK_OPS__ALERT_EMAILS", "oncall@example.com, lead@example.com")
    monkeypatch.setenv("AIRFLOW__DEEPSEEK_OPS__ALERT_FROM", "ops@example.com")
    yield box
    controller.stop()


@pytest.fixture
def failed():
    ti = SimpleNamespace(
        dag_id="retrain", task_id="export", map_index=2, run_id="manual__1", try_number=3, log_url="http://airflow/log"
    )
    return {"ti": ti, "exception": StoreUnavailableError("s3://bucket", "connection <refused>")}


def test_a_failed_task_is_mailed_to_everybody_with_reason_and_log(inbox, failed):
    FailureAlert().notify(failed)
    assert sorted(address for people, _ in inbox.messages for address in people) == [
        "lead@example.com",
        "oncall@example.com",
    ]
    message = inbox.messages[0][1]
    assert message["Subject"].replace("\n", "").startswith("[deepseek-ops] retrain.export[2] failed: object store")
    body = next(part for part in message.walk() if part.get_content_type() == "text/html").get_payload(decode=True)
    assert b"connection &lt;refused&gt;" in body
    assert b"http://airflow/log" in body


def test_an_alert_that_cannot_be_sent_does_not_raise(monkeypatch, failed, caplog):
    monkeypatch.setenv("AIRFLOW__DEEPSEEK_OPS__ALERT_EMAILS", "oncall@example.com")
    monkeypatch.delenv("AIRFLOW_CONN_SMTP_DEFAULT", raising=False)
    FailureAlert().notify(failed)


def test_without_recipients_nothing_is_sent(inbox, failed, monkeypatch):
    monkeypatch.setenv("AIRFLOW__DEEPSEEK_OPS__ALERT_EMAILS", "")
    FailureAlert().notify(failed)
    assert inbox.messages == []


def test_the_message_is_one_line_in_the_subject_whatever_the_error_says(failed):
    failed["exception"] = ValueError("first line\nsecond line " + "x" * 500)
    subject = failure_message(failed)["subject"]
    assert "\n" not in subject
    assert len(subject) < 220
