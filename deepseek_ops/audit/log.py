"""One line to write an audit event, one to show some."""

from __future__ import annotations

import json
from collections.abc import Iterable

from pydantic import JsonValue

from deepseek_ops.core.ports import Facts
from deepseek_ops.core.records import AuditEvent


def record(facts: Facts, actor: str, action: str, subject: str, **details: JsonValue) -> int:
    """Append an event and return its sequence number.

    ``action`` is a verb in the past tense, ``subject`` a kind and a name such as ``model/tiny/1.2.0``.
    """
    return facts.append_audit(AuditEvent(actor=actor, action=action, subject=subject, details=details))


def render(events: Iterable[tuple[int, str, AuditEvent]]) -> str:
    """Return one line per event: ``#seq time actor action subject key=value ...``; control characters are escaped.

    Details come from outside, and a log that a terminal interprets could hide its own lines.
    """
    return "\n".join(_line(seq, at, event) for seq, at, event in events)


def _line(seq: int, at: str, event: AuditEvent) -> str:
    details = " ".join(f"{name}={_shown(value)}" for name, value in sorted(event.details.items()))
    words = (f"#{seq}", at[:19] + "Z", event.actor, event.action, event.subject, details)
    return "".join(_visible(character) for character in " ".join(filter(None, words)))


def _shown(value: JsonValue) -> str:
    plain = isinstance(value, str) and value and " " not in value
    return str(value) if plain else json.dumps(value, ensure_ascii=False, sort_keys=True)


def _visible(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()
