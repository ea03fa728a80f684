"""The promises of the Facts port, kept by SQLite and by a real PostgreSQL."""

from __future__ import annotations

import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from contract_facts import FactsContract, _chain, event
from fixtures_postgres import postgres_dsn, postgres_server  # noqa: F401  (fixtures)

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.adapters.facts.errors import (
    FactsAccessError,
    FactsCorruptError,
    FactsDiskFullError,
    FactsDsnError,
)
from deepseek_ops.adapters.facts.store import SqlFacts
from deepseek_ops.core.errors import (
    FactsUnavailableError,
)


class TestSqliteFacts(FactsContract):
    @pytest.fixture
    def dsn(self, tmp_path: Path) -> str:
        return f"sqlite:///{tmp_path}/folder that is not there yet/100% facts.db"

    def alter(self, facts: SqlFacts, *statements: str) -> None:
        with facts._engine.begin() as connection:
            for verb in ("update", "delete"):
                connection.exec_driver_sql(f"DROP TRIGGER audit_log_no_{verb}")
            for statement in statements:
                connection.exec_driver_sql(statement)

    def test_opening_an_up_to_date_database_does_not_import_alembic(self, facts: SqlFacts, dsn: str) -> None:
        code = (
            "import sys; from deepseek_ops.adapters.facts import open_facts; open_facts(sys.argv[1]).find('k');"
            "print([name for name in ('alembic', 'sqlalchemy.orm') if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code, dsn], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"

    def test_a_missing_file_is_not_created_when_only_looking(self, tmp_path: Path) -> None:
        with pytest.raises(FactsAccessError, match=r"missing\.db.*unable to open"):
            open_facts(f"sqlite:///{tmp_path}/missing.db", migrate=False)
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_cannot_be_made_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(FactsAccessError, match="file cannot be made"):
            open_facts(f"sqlite:///{tmp_path}/file/facts.db")

    @pytest.mark.parametrize(
        "dsn",
        [
            "sqlite://",
            "sqlite:///:memory:",
            "mysql://u:hunter2@h/d",
            "hunter2@h",
            "x://u:hunter2/@h:p/d",
            "sqlite:///x.db?mode=ro",
        ],
    )
    def test_a_dsn_that_cannot_work_is_refused_without_its_password(self, dsn: str) -> None:
        with pytest.raises(FactsDsnError) as caught:
            open_facts(dsn)
        assert "hunter2" not in "".join(_chain(caught.value))

    def test_a_full_disk_is_a_clear_permanent_error_and_loses_nothing(self, facts: SqlFacts) -> None:
        facts.insert("k", "before", {"n": 1})
        with facts._engine.begin() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages + 1}")
        with pytest.raises(FactsDiskFullError, match=r"facts\.db is out of space: database or disk is full"):
            facts.insert("k", "large", {"text": "x" * 100_000})
        assert [fact.key for fact in facts.find("k")] == ["before"]

    @pytest.mark.parametrize("damage", ["not a database", "pages"])
    def test_a_damaged_file_is_a_clear_permanent_error(self, tmp_path: Path, damage: str) -> None:
        path = tmp_path / "facts.db"
        if damage == "pages":
            with open_facts(f"sqlite:///{path}") as facts:
                for number in range(50):
                    facts.insert("k", str(number), {"text": "x" * 1000})
            data = path.read_bytes()
            path.write_bytes(data[:4096] + b"\xa5" * (len(data) - 4096))
        else:
            path.write_bytes(b"this is a text file, not a database " * 100)
        with pytest.raises(FactsCorruptError, match=r"facts\.db is damaged.*restore a backup"):
            open_facts(f"sqlite:///{path}").find("k")

    def test_a_database_locked_for_too_long_is_transient(
        self, facts: SqlFacts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from deepseek_ops.adapters.facts import engine

        monkeypatch.setattr(engine, "BUSY_SECONDS", 0.1)
        path = str(sa.make_url(facts.dsn).database)
        with sqlite3.connect(path, isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            with open_facts(facts.dsn) as impatient:
                assert impatient.find("k") == [], "readers do not wait for writers"
                with pytest.raises(FactsUnavailableError, match="database is locked"):
                    impatient.insert("k", "key", {})
            other.execute("ROLLBACK")
        other.close()

    def test_a_writer_does_not_wait_for_a_reader(self, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
        from deepseek_ops.adapters.facts import engine

        monkeypatch.setattr(engine, "BUSY_SECONDS", 0.1)
        with open_facts(dsn) as facts, facts._engine.begin() as reading:
            reading.exec_driver_sql("SELECT * FROM facts").all()
            facts.insert("k", "key", {})

    def test_a_read_only_file_is_refused(self, facts: SqlFacts, tmp_path: Path) -> None:
        facts._engine.dispose()
        sa.event.listen(facts._engine, "connect", lambda raw, _: raw.execute("PRAGMA query_only=1"))
        with pytest.raises(FactsAccessError, match="readonly"):
            facts.insert("k", "key", {})


@pytest.mark.slow  # starts a database server
class TestPostgresFacts(FactsContract):
    @pytest.fixture
    def dsn(self, postgres_dsn: str) -> str:  # noqa: F811
        return postgres_dsn

    def alter(self, facts: SqlFacts, *statements: str) -> None:
        with facts._engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE audit_log DISABLE TRIGGER USER")
            for statement in statements:
                connection.exec_driver_sql(statement)

    def test_truncating_the_audit_log_is_refused(self, facts: SqlFacts) -> None:
        facts.append_audit(event())
        with pytest.raises(sa.exc.DBAPIError, match="append-only"), facts._engine.begin() as connection:
            connection.execute(sa.text("TRUNCATE audit_log"))

    @pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
    def test_the_usual_schemes_mean_the_same_driver(self, dsn: str, scheme: str) -> None:
        with open_facts(dsn.replace("postgresql+psycopg", scheme)) as facts:
            assert facts.find("k") == []

    def test_a_wrong_password_is_permanent_and_not_repeated(self, dsn: str) -> None:
        password = sa.make_url(dsn).password
        assert password is not None
        with pytest.raises(FactsAccessError, match="authentication failed") as caught:
            open_facts(dsn.replace(str(password), "hunter2"))
        assert "hunter2" not in "".join(_chain(caught.value))

    def test_a_missing_database_is_permanent(self, dsn: str) -> None:
        with pytest.raises(FactsAccessError, match="does not exist"):
            open_facts(dsn + "_missing")

    def test_a_server_that_is_away_is_transient(self, dsn: str) -> None:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            port = closed.getsockname()[1]
        url = sa.make_url(dsn).set(port=port)
        with pytest.raises(FactsUnavailableError, match="not available") as caught:
            open_facts(url.render_as_string(hide_password=False))
        assert str(url.password) not in "".join(_chain(caught.value))

    def test_a_password_among_the_options_is_masked(self, dsn: str) -> None:
        password = str(sa.make_url(dsn).password)
        with open_facts(dsn.replace(f":{password}@", "@") + f"?password={password}") as facts:
            assert password not in facts.dsn
            assert facts.find("k") == []

    def test_connections_that_the_server_closed_are_replaced(self, facts: SqlFacts, dsn: str) -> None:
        facts.insert("k", "before", {})
        with open_facts(dsn) as other, other._engine.begin() as connection:
            connection.execute(
                sa.text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        facts.insert("k", "after", {})
        assert [fact.key for fact in facts.find("k")] == ["after", "before"]

    def test_a_prefix_uses_the_index(self, facts: SqlFacts) -> None:
        with facts._engine.begin() as connection:
            connection.execute(sa.text("SET LOCAL enable_seqscan = off"))
            rows = connection.execute(
                sa.text("EXPLAIN SELECT * FROM facts WHERE kind = 'k' AND key >= 'a/' AND key < 'a0'")
            )
            plan = "\n".join(str(row[0]) for row in rows)
        assert "facts_pkey" in plan
        assert "Filter" not in plan
