"""Bring the schema up to date: cheap when it is, safe when many processes find at once that it is not."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from deepseek_ops.adapters.facts.errors import FactsSchemaError
from deepseek_ops.adapters.facts.schema import HEAD, VERSION_TABLE

_MIGRATION_LOCK = 0x64656570_0001
"""Advisory lock of PostgreSQL; any number that nobody else uses."""


def stored_revision(connection: sa.Connection) -> str:
    """Return the schema revision of the database, empty when it has none of our tables."""
    if not sa.inspect(connection).has_table(VERSION_TABLE):
        return ""
    row = connection.execute(sa.text(f"SELECT version_num FROM {VERSION_TABLE}")).first()  # noqa: S608  (a constant)
    return str(row[0]) if row else ""


def require_head(connection: sa.Connection, dsn: str) -> None:
    """Raise FactsSchemaError unless the schema is this release's."""
    if (found := stored_revision(connection)) != HEAD:
        raise FactsSchemaError(dsn, found, HEAD)


def upgrade(connection: sa.Connection, dsn: str) -> None:
    """Upgrade to HEAD within the caller's write transaction.

    SQLite's BEGIN IMMEDIATE has taken the write lock already; PostgreSQL takes an advisory lock here. Whoever waited
    finds the work done. Raises FactsSchemaError when a newer release wrote the database: it is never downgraded.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK)))
    found = stored_revision(connection)
    if found == HEAD:
        return
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    config.attributes["connection"] = connection
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found and found not in known:
        raise FactsSchemaError(dsn, found, HEAD)
    command.upgrade(config, "head")
