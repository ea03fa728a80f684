"""Make the facts and the append-only audit log.

A migration is frozen once released: it repeats the types instead of importing them, because the schema module moves on.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_KEY = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

_REFUSE_SQLITE = """
CREATE TRIGGER audit_log_no_{verb} BEFORE {verb} ON audit_log
BEGIN SELECT RAISE(ABORT, 'audit_log is append-only'); END
"""
_REFUSE_POSTGRES = (
    """
CREATE FUNCTION audit_log_refuse() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'audit_log is append-only'; END $$
""",
    """
CREATE TRIGGER audit_log_no_change BEFORE UPDATE OR DELETE ON audit_log
FOR EACH ROW EXECUTE FUNCTION audit_log_refuse()
""",
    """
CREATE TRIGGER audit_log_no_truncate BEFORE TRUNCATE ON audit_log
FOR EACH STATEMENT EXECUTE FUNCTION audit_log_refuse()
""",
)


def upgrade() -> None:
    """Make both tables, their indexes, and the triggers that refuse changes of the log."""
    op.create_table(
        "facts",
        sa.Column("kind", _KEY, primary_key=True),
        sa.Column("key", _KEY, primary_key=True),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("run", _KEY, nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
        sa.Column("created_at", _KEY, nullable=False),
        sa.Column("updated_at", _KEY, nullable=False),
    )
    op.create_index("facts_kind_created_at", "facts", ["kind", "created_at"])
    op.create_index("facts_kind_run_created_at", "facts", ["kind", "run", "created_at"])
    op.create_table(
        "audit_log",
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at", _KEY, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("subject", _KEY, nullable=False),
        sa.Column("body", sa.JSON, nullable=False),
        sa.Column("prev_digest", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
    )
    op.create_index("audit_log_subject_seq", "audit_log", ["subject", "seq"])
    if op.get_bind().dialect.name == "sqlite":
        statements = tuple(_REFUSE_SQLITE.format(verb=verb) for verb in ("UPDATE", "DELETE"))
    else:
        statements = _REFUSE_POSTGRES
    for statement in statements:
        op.execute(statement)
