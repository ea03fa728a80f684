"""JSON of Kubernetes objects, read without trust in their shape."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

Body = dict[str, JsonValue]


def part(body: Mapping[str, JsonValue], *path: str) -> Body:
    """Return the object at a path, or an empty one where there is none."""
    found = dict(body)
    for key in path:
        value = found.get(key)
        found = value if isinstance(value, dict) else {}
    return found


def parts(body: Mapping[str, JsonValue], *path: str) -> list[Body]:
    """Return the objects of a list at a path."""
    value = part(body, *path[:-1]).get(path[-1])
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def text(body: Mapping[str, JsonValue], *path: str) -> str:
    """Return the text at a path, or ""."""
    value = part(body, *path[:-1]).get(path[-1])
    return value if isinstance(value, str) else ""


def condition(body: Mapping[str, JsonValue], kind: str) -> Body | None:
    """Return the status condition of that type if it is true."""
    for found in parts(body, "status", "conditions"):
        if found.get("type") == kind and found.get("status") == "True":
            return found
    return None


def because(body: Mapping[str, JsonValue]) -> str:
    """Return reason and message of a condition or of a container's state, in one line."""
    reason, message = text(body, "reason"), " ".join(text(body, "message").split())[:400]
    return f"{reason}: {message}" if reason and message else reason or message
