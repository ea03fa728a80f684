"""Facts in SQL: one implementation for SQLite (a file, the default) and PostgreSQL (by DSN).

Decision: SQLAlchemy Core and no ORM. Two tables of JSON hold every record, so there is nothing to map, and an
Airflow task that opens the facts pays for one import less. The price is that dashboards read JSON paths; the queries
in ``include/sql`` show how, in a dialect that both databases speak.

Decision: the schema is brought up to date when the facts are opened, under a lock of the database, in one
transaction: any number of processes may open at once, and one that is killed leaves nothing half-made. Alembic is
imported only when the version table says that there is something to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deepseek_ops.adapters.facts.store import SqlFacts

__all__ = ["open_facts"]


def open_facts(dsn: str, *, migrate: bool = True) -> SqlFacts:
    """Return the facts stored at ``dsn``, with the schema of this release.

    Args:
        dsn: ``sqlite:///relative.db``, ``sqlite:////absolute.db`` or ``postgresql+psycopg://user:password@host/db``
            (``postgresql://`` and ``postgres://`` mean the same driver). The password is in no message.
        migrate: Create or upgrade the tables. False only looks, and refuses a database that is not up to date.

    Raises:
        FactsUnavailableError: The database does not answer, or is locked for too long.
        FactsDsnError, FactsAccessError, FactsSchemaError, FactsCorruptError, FactsDiskFullError: A person has to act.
        MissingDependencyError: PostgreSQL without ``deepseek-ops[postgres]``.
    """
    from deepseek_ops.adapters.facts.store import SqlFacts

    return SqlFacts.open(dsn, migrate=migrate)
