"""A bucket that tells a queue what is stored in it: S3 and SQS of moto, over their real HTTP interfaces."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from fixtures_triggers import connect

REGION = "us-east-1"
KEYS = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": REGION}


@dataclass(frozen=True)
class Lake:
    """The bucket ``lake`` and its queue."""

    s3: Any
    sqs: Any
    queue: str
    endpoint: str

    def put(self, key: str, data: bytes = b"1") -> None:
        self.s3.put_object(Bucket="lake", Key=key, Body=data)

    def send(self, body: str) -> None:
        self.sqs.send_message(QueueUrl=self.queue, MessageBody=body)

    def waiting(self) -> int:
        """Return how many messages are in the queue, those that somebody has taken included."""
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        counts = self.sqs.get_queue_attributes(QueueUrl=self.queue, AttributeNames=names)["Attributes"]
        return sum(int(counts[name]) for name in names)


@pytest.fixture
def notified_lake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lake]:
    """Start the server, make bucket, queue and notification, and define the connections ``lake`` and ``queue``."""
    import boto3
    import httpx
    from moto.server import ThreadedMotoServer

    from deepseek_ops.airflow.triggers import queue as watched

    monkeypatch.setattr(watched, "LONGEST_RECEIVE_SECONDS", 1)  # the server ends only when the last request has
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        endpoint = f"http://{host}:{port}"
        httpx.post(f"{endpoint}/moto-api/reset").raise_for_status()  # its state belongs to the process
        s3 = boto3.client("s3", endpoint_url=endpoint, **KEYS)
        sqs = boto3.client("sqs", endpoint_url=endpoint, **KEYS)
        s3.create_bucket(Bucket="lake")
        queue = sqs.create_queue(QueueName="arrivals", Attributes={"VisibilityTimeout": "2"})["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        told = {"QueueConfigurations": [{"QueueArn": arn, "Events": ["s3:ObjectCreated:*"]}]}
        s3.put_bucket_notification_configuration(Bucket="lake", NotificationConfiguration=told)
        extra = {"endpoint_url": endpoint, "region_name": REGION}
        connect(
            monkeypatch, "lake", conn_type="aws", login="key", password="secret", extra={**extra, "uri": "s3://lake"}
        )
        connect(monkeypatch, "queue", conn_type="aws", login="key", password="secret", extra=extra)
        yield Lake(s3, sqs, queue, endpoint)
    finally:
        server.stop()


def redrive(lake: Lake) -> str:
    """Give the queue a dead-letter queue after two receives and return its URL."""
    dead = lake.sqs.create_queue(QueueName="dead")["QueueUrl"]
    arn = lake.sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    policy = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 2})
    lake.sqs.set_queue_attributes(QueueUrl=lake.queue, Attributes={"RedrivePolicy": policy})
    return str(dead)
