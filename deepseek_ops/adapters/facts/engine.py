"""One engine per database, with the settings that keep our promises."""

from __future__ import annotations

import os
import re
import sqlite3
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

import sqlalchemy as sa
from pydantic import JsonValue

from deepseek_ops.adapters.facts.errors import FactsAccessError, FactsDsnError
from deepseek_ops.core.errors import MissingDependencyError
from deepseek_ops.core.records import canonical_json

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry, PoolProxiedConnection

BUSY_SECONDS = 60.0
"""How long a SQLite writer waits for the others: writers queue for the file, and each holds it for milliseconds."""
_CONNECT_SECONDS = 10
_POSTGRES_NAMES = {"postgres", "postgresql", "postgresql+psycopg"}
_SECRET_OPTIONS = re.compile(r"password|passwd|secret|token", re.IGNORECASE)


def parse_dsn(dsn: str) -> sa.URL:
    """Return the DSN as a URL of a driver that we use. Raises FactsDsnError without repeating a password."""
    masked = re.sub(r"^(\w[\w+]*://)?.*@", r"\1***@", dsn)
    try:
        url = sa.make_url(dsn)
    except (sa.exc.ArgumentError, ValueError):
        raise FactsDsnError(masked, "it is not a URL") from None  # the cause repeats the DSN
    if url.drivername in _POSTGRES_NAMES:
        return url.set(drivername="postgresql+psycopg")
    if url.drivername != "sqlite":
        raise FactsDsnError(mask(url), f"{url.drivername} is not supported")
    if not url.database or url.database == ":memory:":
        raise FactsDsnError(masked, "a database in memory is gone with the process")
    if url.query:
        raise FactsDsnError(mask(url), "a SQLite file takes no options")
    return url


def mask(url: sa.URL) -> str:
    """Return the URL without its password, wherever it stands."""
    hidden = {name: "***" for name in url.query if _SECRET_OPTIONS.search(name)}
    return url.update_query_dict(hidden).render_as_string(hide_password=True)


def secret_of(url: sa.URL) -> str:
    """Return the password, so that messages of the driver can be cleaned of it; empty when there is none."""
    return str(url.password or "")


def make_engine(url: sa.URL, *, create: bool) -> sa.Engine:
    """Return the engine; connects to nothing yet, except that ``create`` makes the folder of a SQLite file.

    Connections do not survive a fork: a child that used them would speak into its parent's conversation.
    """
    engine = _sqlite_engine(url, create=create) if url.drivername == "sqlite" else _postgres_engine(url)
    _engines.add(engine)
    return engine


_engines: weakref.WeakSet[sa.Engine] = weakref.WeakSet()


def _forget_inherited() -> None:
    for engine in list(_engines):
        engine.dispose(close=False)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_inherited)


def write_json(value: JsonValue) -> str:
    """Return the text that is stored for a JSON value: canonical, so equal bodies are equal text."""
    return canonical_json(value).decode()


def _postgres_engine(url: sa.URL) -> sa.Engine:
    defaults = {
        "connect_timeout": str(_CONNECT_SECONDS),
        "application_name": "deepseek-ops",
        "tcp_user_timeout": "30000",  # ms: a network that swallows packets becomes an error, not a hanging task
    }
    options = {name: value for name, value in defaults.items() if name not in url.query}
    try:
        engine = sa.create_engine(
            url,
            connect_args={**options, "prepare_threshold": None},  # poolers such as PgBouncer lose prepared statements
            hide_parameters=True,
            json_serializer=write_json,
        )
    except ModuleNotFoundError as error:
        raise MissingDependencyError("psycopg", "postgres", "facts in PostgreSQL") from error
    sa.event.listen(engine, "checkout", _ping_postgres)
    return engine


def _ping_postgres(connection: DBAPIConnection, _record: ConnectionPoolEntry, _proxy: PoolProxiedConnection) -> None:
    """Replace connections that the server has closed, before they are used.

    Not ``pool_pre_ping``: its ping switches autocommit on and back off, and the second switch fails with an error of
    its own when the socket closes in between, which then hides that the connection is only gone.
    """
    import psycopg

    try:
        cursor = connection.cursor()
        cursor.execute("SELECT 1")
        cursor.close()
        connection.rollback()
    except psycopg.Error as error:
        raise sa.exc.InvalidatePoolError("the server has closed the connection") from error


def _sqlite_engine(url: sa.URL, *, create: bool) -> sa.Engine:
    path = Path(str(url.database)).absolute()
    if create:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FactsAccessError(mask(url), f"{path.parent} cannot be made: {error.strerror}") from error
    # Read-write but never create, unless asked to: a misspelt path must not become an empty database.
    mode = "rwc" if create else "rw"
    location = f"{path.as_uri()}?mode={mode}"

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(location, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)

    engine = sa.create_engine(
        "sqlite://", creator=connect, poolclass=sa.QueuePool, hide_parameters=True, json_serializer=write_json
    )
    sa.event.listen(engine, "connect", _prepare_sqlite)
    sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: sqlite3.Connection, _: ConnectionPoolEntry) -> None:
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute("PRAGMA synchronous=FULL")
    if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        _switch_to_wal(connection)


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Turn on WAL: readers and the one writer do not wait for each other. The file remembers it.

    SQLite does not wait for others while it switches, it answers "locked" at once, so we wait.
    """
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
        except sqlite3.OperationalError as error:
            if not error.sqlite_errorname.startswith("SQLITE_BUSY") or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _begin_sqlite(connection: sa.Connection) -> None:
    # The sqlite3 module would begin late and deferred: two writers that both read first could then only fail.
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
