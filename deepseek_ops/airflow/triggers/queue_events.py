"""What S3 says about new objects: its own notifications, EventBridge's form, and either of them wrapped by SNS."""

from __future__ import annotations

import json
from dataclasses import dataclass
from urllib.parse import unquote_plus

from deepseek_ops.core.errors import PermanentError

MAX_WRAPPERS = 3


@dataclass(eq=False)
class NotAnEventError(PermanentError):
    """A message that is no notification about an S3 object."""

    problem: str

    def __str__(self) -> str:
        return f"not a notification of S3: {self.problem}; only the bucket should write to this queue."


@dataclass(frozen=True, slots=True)
class ObjectEvent:
    """An object that was created or removed."""

    bucket: str
    key: str


def events_in(body: str) -> list[ObjectEvent]:
    """Return the objects that a message tells of; none for S3's test event. Raises NotAnEventError."""
    message = body
    for _ in range(MAX_WRAPPERS):
        try:
            parsed = json.loads(message)
        except ValueError:
            raise NotAnEventError("it is no JSON") from None
        if not isinstance(parsed, dict):
            raise NotAnEventError("it is no object")
        if parsed.get("Type") == "Notification" and isinstance(parsed.get("Message"), str):
            message = parsed["Message"]
            continue
        return _events(parsed)
    raise NotAnEventError(f"it is wrapped more than {MAX_WRAPPERS} times")


def _events(parsed: dict[str, object]) -> list[ObjectEvent]:
    if parsed.get("Event") == "s3:TestEvent":
        return []
    try:
        if parsed.get("source") == "aws.s3":
            detail = _object(parsed["detail"])
            # EventBridge gives the key as it is; S3's own notifications give it URL-encoded.
            return [ObjectEvent(str(_object(detail["bucket"])["name"]), str(_object(detail["object"])["key"]))]
        records = parsed["Records"]
        if not isinstance(records, list):
            raise NotAnEventError("Records is no list")
        return [_record(_object(record)) for record in records]
    except (KeyError, TypeError) as error:
        raise NotAnEventError(f"{error} is missing") from None


def _record(record: dict[str, object]) -> ObjectEvent:
    told = _object(record["s3"])
    key = str(_object(told["object"])["key"])
    return ObjectEvent(str(_object(told["bucket"])["name"]), unquote_plus(key))


def _object(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TypeError("an object")
    return value
