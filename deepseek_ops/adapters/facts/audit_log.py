"""The audit log: append-only, gapless, each event carrying the digest of the one before.

Appends are serialised by the database: SQLite's BEGIN IMMEDIATE (the caller's write transaction), PostgreSQL's advisory
lock. Triggers refuse updates and deletions; whoever goes around them breaks the chain, and ``verify`` names the place.
What a chain cannot see is a tail that was cut off whole: note the last digest elsewhere to catch that.
"""

from __future__ import annotations

from collections.abc import Iterator

import sqlalchemy as sa
from pydantic import ValidationError

from deepseek_ops.adapters.facts.schema import audit_log
from deepseek_ops.core.errors import IntegrityError
from deepseek_ops.core.records import AuditEvent, Digest, canonical_json, digest_of

_APPEND_LOCK = 0x64656570_0002
_PAGE = 1000
_START = ""
"""What the first event names as its predecessor."""


def lock(connection: sa.Connection) -> None:
    """Make this transaction the only one that appends, until it ends."""
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_APPEND_LOCK)))


def append(connection: sa.Connection, event: AuditEvent, at: str) -> int:
    """Return the sequence number of the event, appended within the caller's locked write transaction."""
    columns = audit_log.c
    last = connection.execute(sa.select(columns.seq, columns.digest).order_by(columns.seq.desc()).limit(1)).first()
    seq, previous = (last.seq + 1, last.digest) if last else (1, _START)
    connection.execute(
        audit_log.insert(),
        {
            "seq": seq,
            "at": at,
            "actor": event.actor,
            "action": event.action,
            "subject": event.subject,
            "body": event.details,
            "prev_digest": previous,
            "digest": chained_digest(seq, at, event, previous),
        },
    )
    return int(seq)


def chained_digest(seq: int, at: str, event: AuditEvent, previous: str) -> Digest:
    """Return the digest of one event and, through its predecessor's, of all before it."""
    return digest_of(canonical_json({"seq": seq, "at": at, "event": event.dump(), "previous": previous}))


def read(connection: sa.Connection, *, subject: str | None, limit: int) -> list[tuple[int, str, AuditEvent]]:
    """Return the last ``limit`` events, optionally of one subject, oldest first."""
    query = audit_log.select().order_by(audit_log.c.seq.desc()).limit(limit)
    if subject is not None:
        query = query.where(audit_log.c.subject == subject)
    return [(row.seq, row.at, _event(row)) for row in reversed(connection.execute(query).all())]


def verify(connection: sa.Connection, dsn: str) -> int:
    """Return the number of events. Raises IntegrityError at the first that is missing or is not what was written."""
    previous, count = _START, 0
    for row in _rows(connection):
        count += 1
        where = f"audit event {count} of {dsn}"
        if row.seq != count:
            raise IntegrityError(where, f"that follows {previous or 'the start'}", f"missing (next is {row.seq})")
        if row.prev_digest != previous:
            raise IntegrityError(f"{where} (its predecessor)", previous or "none", row.prev_digest or "none")
        try:
            actual = chained_digest(row.seq, row.at, _event(row), previous)
        except ValidationError as error:
            raise IntegrityError(where, row.digest, "none: its body is no JSON object") from error
        if actual != row.digest:
            raise IntegrityError(where, row.digest, actual)
        previous = row.digest
    return count


def _rows(connection: sa.Connection) -> Iterator[sa.Row[tuple[object, ...]]]:
    after = 0
    while page := connection.execute(
        audit_log.select().where(audit_log.c.seq > after).order_by(audit_log.c.seq).limit(_PAGE)
    ).all():
        yield from page
        after = page[-1].seq


def _event(row: sa.Row[tuple[object, ...]]) -> AuditEvent:
    return AuditEvent(actor=row.actor, action=row.action, subject=row.subject, details=row.body)
