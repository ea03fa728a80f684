"""Run by Alembic. The caller gives a connection inside its own transaction and commits or rolls back as a whole."""

from __future__ import annotations

from alembic import context

from deepseek_ops.adapters.facts.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
)
with context.begin_transaction():
    context.run_migrations()
