"""The tables as this release reads them. Alembic makes them; a test compares the two.

``json``, not ``jsonb``: the body must come back as it went in. ``jsonb`` would turn 1e300 into a 301-digit integer, and
the digest of an audit event with it. Keys are compared by code point on both databases, so a prefix is an index range.
Times are fixed-width ISO 8601 UTC text, which sorts as time and reads the same in both.
"""

from __future__ import annotations

import sqlalchemy as sa

HEAD = "0001"
"""Newest revision in ``migrations/versions``; known without importing Alembic."""
VERSION_TABLE = "deepseek_ops_version"
"""Ours alone, so that the facts can share a database with other users of Alembic."""

metadata = sa.MetaData()


_Key = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")


facts = sa.Table(
    "facts",
    metadata,
    sa.Column("kind", _Key, primary_key=True),
    sa.Column("key", _Key, primary_key=True),
    sa.Column("revision", sa.Integer, nullable=False),
    sa.Column("run", _Key, nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
    sa.Column("created_at", _Key, nullable=False),
    sa.Column("updated_at", _Key, nullable=False),
    sa.Index("facts_kind_created_at", "kind", "created_at"),
    sa.Index("facts_kind_run_created_at", "kind", "run", "created_at"),
)

audit_log = sa.Table(
    "audit_log",
    metadata,
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("at", _Key, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("subject", _Key, nullable=False),
    sa.Column("body", sa.JSON, nullable=False),
    sa.Column("prev_digest", sa.Text, nullable=False),
    sa.Column("digest", sa.Text, nullable=False),
    sa.Index("audit_log_subject_seq", "subject", "seq"),
)
