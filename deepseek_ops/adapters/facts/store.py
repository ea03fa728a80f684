"""The ``Facts`` port over SQL."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from types import TracebackType
from typing import Self

import sqlalchemy as sa
from pydantic import JsonValue

from deepseek_ops.adapters.facts import audit_log, migrate
from deepseek_ops.adapters.facts.engine import make_engine, mask, parse_dsn, secret_of, write_json
from deepseek_ops.adapters.facts.errors import FactsSchemaError, translate
from deepseek_ops.adapters.facts.schema import HEAD, facts
from deepseek_ops.core.errors import FactConflictError, InvalidRecordError, ObjectExistsError
from deepseek_ops.core.ports import Fact
from deepseek_ops.core.records import AuditEvent

SCAN_ROWS = 500


class SqlFacts:
    """JSON facts and the audit log in one SQL database. Threads may share it; a forked child gets new connections."""

    def __init__(self, engine: sa.Engine, dsn: str, secret: str = "") -> None:
        self.dsn = dsn
        self._engine = engine
        self._writer = engine.execution_options(write=True)
        self._secret = secret

    @classmethod
    def open(cls, dsn: str, *, migrate: bool = True) -> Self:
        """Return the facts at ``dsn`` with the schema of this release; see ``open_facts``."""
        url = parse_dsn(dsn)
        store = cls(make_engine(url, create=migrate), mask(url), secret_of(url))
        try:
            store._check_schema(upgrade=migrate)
        except BaseException:
            store.close()
            raise
        return store

    def close(self) -> None:
        """Close the connections; the object opens new ones if it is used again."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- facts ---

    def insert(self, kind: str, key: str, body: Mapping[str, JsonValue], *, run: str = "") -> Fact:
        """Store a new fact. Raises ObjectExistsError when the key is taken; exactly one concurrent writer wins."""
        stored = _checked(kind, key, body, run=run)
        with self._write() as connection:
            at = now(connection)
            row = {"kind": kind, "key": key, "revision": 1, "run": run, "body": stored}
            try:
                connection.execute(facts.insert(), {**row, "created_at": at, "updated_at": at})
            except sa.exc.IntegrityError as error:
                raise ObjectExistsError(f"fact {kind}/{key}") from error
        return Fact(kind=kind, key=key, revision=1, body=stored, run=run, created_at=at)

    def update(self, fact: Fact, body: Mapping[str, JsonValue]) -> Fact:
        """Replace the body of the fact as it was read. Raises FactConflictError when it has moved on."""
        stored = _checked(fact.kind, fact.key, body)
        revision = fact.revision + 1
        with self._write() as connection:
            changed = connection.execute(
                facts.update()
                .where(facts.c.kind == fact.kind, facts.c.key == fact.key, facts.c.revision == fact.revision)
                .values(body=stored, revision=revision, updated_at=now(connection))
            )
            if changed.rowcount != 1:
                raise FactConflictError(fact.kind, fact.key)
        return Fact(fact.kind, fact.key, revision, stored, fact.run, fact.created_at)

    def get(self, kind: str, key: str) -> Fact | None:
        """Return the fact, or None."""
        with self._read() as connection:
            row = connection.execute(facts.select().where(facts.c.kind == kind, facts.c.key == key)).first()
        return None if row is None else _fact(row)

    def find(self, kind: str, *, prefix: str = "", run: str | None = None, limit: int = 1000) -> list[Fact]:
        """Return facts of a kind, newest first, optionally of one run or with a key prefix."""
        query = facts.select().where(facts.c.kind == kind)
        if prefix:
            query = query.where(facts.c.key >= prefix)
            # A range, because LIKE ignores case on SQLite and reads % and _ as wildcards on both.
            if end := _after_prefix(prefix):
                query = query.where(facts.c.key < end)
        if run is not None:
            query = query.where(facts.c.run == run)
        query = query.order_by(facts.c.created_at.desc(), facts.c.key.desc()).limit(limit)
        with self._read() as connection:
            return [_fact(row) for row in connection.execute(query)]

    def scan(self) -> Iterator[Fact]:
        """Yield every fact of every kind, by kind and key, in pages; one that is inserted meanwhile may be missed."""
        last: tuple[str, str] = ("", "")
        while True:
            after = sa.tuple_(facts.c.kind, facts.c.key) > sa.tuple_(sa.literal(last[0]), sa.literal(last[1]))
            query = facts.select().where(after).order_by(facts.c.kind, facts.c.key).limit(SCAN_ROWS)
            with self._read() as connection:
                page = [_fact(row) for row in connection.execute(query)]
            if not page:
                return
            yield from page
            last = (page[-1].kind, page[-1].key)

    # --- audit ---

    def append_audit(self, event: AuditEvent) -> int:
        """Append to the hash-chained audit log and return the sequence number."""
        _require_storable("AuditEvent", event.details, event.actor, event.action, event.subject)
        with self._write() as connection:
            audit_log.lock(connection)
            return audit_log.append(connection, event, now(connection))

    def audit(self, *, subject: str | None = None, limit: int = 1000) -> list[tuple[int, str, AuditEvent]]:
        """Return (sequence, ISO time, event), oldest first: the last ``limit`` of them."""
        with self._read() as connection:
            return audit_log.read(connection, subject=subject, limit=limit)

    def verify_audit(self) -> int:
        """Return the number of chained events. Raises IntegrityError naming the first sequence that was changed."""
        with self._read() as connection:
            return audit_log.verify(connection, self.dsn)

    # --- transactions ---

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        with self._translated(), self._writer.begin() as connection:
            yield connection

    @contextmanager
    def _read(self) -> Iterator[sa.Connection]:
        with self._translated(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sa.exc.SQLAlchemyError as error:
            known = translate(error, self.dsn, self._secret)
            if known is None:
                raise
            raise known from error

    def _check_schema(self, *, upgrade: bool) -> None:
        with self._read() as connection:
            if (found := migrate.stored_revision(connection)) == HEAD:
                return
        if not upgrade:
            raise FactsSchemaError(self.dsn, found, HEAD)
        with self._write() as connection:
            migrate.upgrade(connection, self.dsn)


def now(connection: sa.Connection) -> str:
    """Return the time as ISO 8601 UTC with microseconds: PostgreSQL's own, so that all machines share one clock."""
    if connection.dialect.name == "postgresql":
        text = "SELECT to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
        return str(connection.scalar(sa.text(text.replace(":", "\\:"))))
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _fact(row: sa.Row[tuple[object, ...]]) -> Fact:
    values = row._mapping
    return Fact(
        kind=values["kind"],
        key=values["key"],
        revision=values["revision"],
        body=values["body"],
        run=values["run"],
        created_at=values["created_at"],
    )


def _checked(kind: str, key: str, body: Mapping[str, JsonValue], *, run: str = "") -> dict[str, JsonValue]:
    """Return the body as a plain dict that both databases can store. Raises InvalidRecordError."""
    if not kind or not key:
        raise InvalidRecordError("Fact", f"kind={kind!r} key={key!r}: both are needed")
    plain = dict(body)
    _require_storable("Fact", plain, kind, key, run)
    return plain


def _require_storable(what: str, body: Mapping[str, JsonValue], *texts: str) -> None:
    """Refuse here what only one database would refuse (NUL, half a surrogate pair) or would store broken (NaN)."""
    for text in texts:
        if "\x00" in text or not _encodes(text):
            raise InvalidRecordError(what, f"{text!r} contains a character that cannot be stored")
    try:
        write_json(dict(body))
    except (TypeError, ValueError) as error:
        raise InvalidRecordError(what, f"the body of {'/'.join(filter(None, texts))} is not JSON: {error}") from error


def _encodes(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _after_prefix(prefix: str) -> str:
    """Return the smallest string that is greater than every string with the prefix; empty when there is none."""
    stem = prefix.rstrip(chr(sys.maxunicode))
    if not stem:
        return ""
    following = ord(stem[-1]) + 1
    return stem[:-1] + chr(0xE000 if 0xD800 <= following <= 0xDFFF else following)
