"""The push path of data arrival: an SQS queue that wakes the watcher. What is there, the listing says, never a message.

Messages come at least once and in any order. A batch is deleted only after the look that it caused went well and its
events were handed over; when that fails, the messages come again after the queue's visibility timeout. A message that
is no notification stays for the queue's redrive policy, which brings it to a dead-letter queue; without such a policy
it is logged and deleted, for it would wake the watcher for ever. While the queue is away the watcher polls on.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from typing import Any
from urllib.parse import urlsplit

from deepseek_ops.airflow.triggers.queue_events import NotAnEventError, ObjectEvent, events_in
from deepseek_ops.airflow.triggers.watching import pause_after
from deepseek_ops.core.errors import MissingDependencyError

log = logging.getLogger(__name__)

LONGEST_RECEIVE_SECONDS = 10
BATCH = 10
MAX_BATCHES = 50
"""One look answers for up to so many batches: a burst of 500 messages is one listing."""
GATHER_SECONDS = 0.5
"""After a first message: how long more may come before the watcher looks."""


class Bell:
    """Waits for the next look: for the interval, or until the queue tells of an object below the prefix."""

    def __init__(self, queue: str, conn_id: str, prefix: str) -> None:
        self._queue = queue
        self._conn_id = conn_id
        self._prefix = prefix
        self._client: Any = None
        self._receipts: list[str] = []
        self._failures = 0
        self._quiet_until = 0.0
        self._redrives = False
        self._keys: list[str] = []

    async def wait(self, seconds: float, uri: str) -> list[str]:
        """Return after ``seconds``, or earlier when the queue told of objects of the store at ``uri``: with their keys.

        The keys are hints where to look: an object that sorts before what is known shows in no incremental listing.
        """
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            quiet = self._quiet_until - time.monotonic() if self._queue else left
            if quiet > 0:
                await asyncio.sleep(min(left, quiet))
                continue
            try:
                rung = await self._receive(uri, left)
            except Exception as error:  # noqa: BLE001  (whatever it is with the queue, polling goes on)
                self._failures += 1
                pause = pause_after(self._failures, 1.0)
                self._quiet_until, self._client = time.monotonic() + pause, None
                log.warning("queue %s failed, asked again in %.0f s, polling goes on: %s", self._queue, pause, error)
                continue
            self._failures = 0
            if rung:
                break
        keys, self._keys = self._keys, []
        return keys

    async def heard(self) -> None:
        """Delete the messages that were answered by a look; when that fails they come again and do no harm."""
        receipts, self._receipts = self._receipts, []
        if not receipts:
            return
        try:
            for start in range(0, len(receipts), BATCH):
                await asyncio.to_thread(self._delete, receipts[start : start + BATCH])
        except Exception as error:  # noqa: BLE001
            log.warning(
                "%d messages of %s could not be deleted and will come again: %s", len(receipts), self._queue, error
            )

    async def _receive(self, uri: str, left: float) -> bool:
        if self._client is None:
            self._client = await asyncio.to_thread(self._open)
        wait = max(0, min(LONGEST_RECEIVE_SECONDS, int(left)))
        for number in range(MAX_BATCHES):
            if number == 0 and wait == 0:
                await asyncio.sleep(min(left, 1.0))
            messages = await asyncio.to_thread(self._batch, wait if number == 0 else 0)
            if not messages:
                break
            poison = [message for message in messages if not self._taken(message, uri)]
            await asyncio.to_thread(self._put_aside, poison)
            if number == 0 and self._keys:
                await asyncio.sleep(GATHER_SECONDS)
        if not self._keys:
            await self.heard()  # other people's objects: nothing to look at
        return bool(self._keys)

    def _taken(self, message: dict[str, Any], uri: str) -> bool:
        """Return whether the message is a notification; keep its receipt until the look is done."""
        try:
            events = events_in(str(message.get("Body", "")))
        except NotAnEventError as error:
            log.warning("message %s of %s: %s", message.get("MessageId"), self._queue, error)
            return False
        self._receipts.append(str(message["ReceiptHandle"]))
        self._keys += [key for event in events if (key := self._key(event, uri)) is not None]
        return True

    def _key(self, event: ObjectEvent, uri: str) -> str | None:
        """Return the object's key in the store, or None when it does not lie below what is watched."""
        place = urlsplit(uri)
        if not place.scheme.startswith("s3"):
            return None
        root = f"{place.path.strip('/')}/".lstrip("/")
        key = event.key.removeprefix(root)
        inside = event.bucket == place.netloc and event.key.startswith(root) and key.startswith(self._prefix)
        return key if inside else None

    # --- in threads ---

    def _open(self) -> Any:
        try:
            from airflow.providers.amazon.aws.hooks.sqs import SqsHook
        except ImportError:
            raise MissingDependencyError("apache-airflow-providers-amazon", "amazon", "waiting for a queue") from None
        client = SqsHook(aws_conn_id=self._conn_id).get_conn()
        answer = client.get_queue_attributes(QueueUrl=self._queue, AttributeNames=["RedrivePolicy"])
        policy = json.loads(answer.get("Attributes", {}).get("RedrivePolicy") or "{}")
        self._redrives = bool(policy.get("deadLetterTargetArn"))
        return client

    def _batch(self, wait: int) -> list[dict[str, Any]]:
        answer = self._client.receive_message(QueueUrl=self._queue, MaxNumberOfMessages=BATCH, WaitTimeSeconds=wait)
        return list(answer.get("Messages", ()))

    def _put_aside(self, poison: list[dict[str, Any]]) -> None:
        if poison and not self._redrives:
            log.error(
                "%d messages of %s are deleted: it has no redrive policy to put them aside", len(poison), self._queue
            )
            self._delete([str(message["ReceiptHandle"]) for message in poison])

    def _delete(self, receipts: list[str]) -> None:
        entries = [{"Id": str(at), "ReceiptHandle": receipt} for at, receipt in enumerate(receipts)]
        if entries:
            self._client.delete_message_batch(QueueUrl=self._queue, Entries=entries)
