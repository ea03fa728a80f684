"""The contract of every Facts adapter; ``test_facts`` runs it on SQLite and PostgreSQL."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier

import pytest
import sqlalchemy as sa
from fixtures_postgres import postgres_dsn, postgres_server  # noqa: F401  (fixtures)

from deepseek_ops.adapters.facts import open_facts, schema
from deepseek_ops.adapters.facts.errors import (
    FactsAccessError,
    FactsSchemaError,
)
from deepseek_ops.adapters.facts.store import SqlFacts
from deepseek_ops.core.errors import (
    FactConflictError,
    IntegrityError,
    InvalidRecordError,
    ObjectExistsError,
)
from deepseek_ops.core.records import AuditEvent


def event(number: int = 0, subject: str = "model/tiny") -> AuditEvent:
    return AuditEvent(actor="ada", action="registered", subject=subject, details={"number": number, "loss": 1.5})


class FactsContract:
    """TestSqliteFacts and TestPostgresFacts inherit it and provide `dsn`."""

    @pytest.fixture
    def facts(self, dsn: str) -> Iterator[SqlFacts]:
        with open_facts(dsn) as facts:
            yield facts

    def alter(self, facts: SqlFacts, *statements: str) -> None:
        """Change rows as an operator with a database shell could: triggers off."""
        raise NotImplementedError

    # --- facts ---

    def test_a_fact_comes_back_as_it_was_stored(self, facts: SqlFacts) -> None:
        body = {"float": 1e300, "one": 1.0, "text": 'é "\x00\\', "none": None, "nested": {"list": [1, [True]]}, "": 0}
        stored = facts.insert("kind", "a/b c", body, run="r1")
        assert facts.get("kind", "a/b c") == stored
        assert (stored.body, stored.revision, stored.run) == (body, 1, "r1")
        assert isinstance(stored.body["one"], float)
        assert facts.get("kind", "a/b") is None
        assert facts.get("other", "a/b c") is None

    def test_a_scan_finds_every_fact_once(self, facts: SqlFacts, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("deepseek_ops.adapters.facts.store.SCAN_ROWS", 3)
        assert list(facts.scan()) == []
        kinds = ("B", "a", "a%", "z")
        stored = [facts.insert(kind, f"{number}/é", {"n": number}) for kind in kinds for number in range(4)]
        assert list(facts.scan()) == stored

    def test_a_second_insert_is_refused_and_changes_nothing(self, facts: SqlFacts) -> None:
        first = facts.insert("kind", "key", {"n": 1})
        with pytest.raises(ObjectExistsError, match="kind/key"):
            facts.insert("kind", "key", {"n": 2})
        assert facts.get("kind", "key") == first

    def test_of_32_writers_exactly_one_wins(self, facts: SqlFacts) -> None:
        barrier = threading.Barrier(32)

        def write(number: int) -> bool:
            barrier.wait()
            try:
                facts.insert("race", "one", {"winner": number})
            except ObjectExistsError:
                return False
            return True

        with ThreadPoolExecutor(32) as pool:
            wins = list(pool.map(write, range(32)))
        assert wins.count(True) == 1
        fact = facts.get("race", "one")
        assert fact is not None
        assert fact.body == {"winner": wins.index(True)}

    def test_an_update_needs_the_revision_that_was_read(self, facts: SqlFacts) -> None:
        first = facts.insert("kind", "key", {"n": 1}, run="r")
        second = facts.update(first, {"n": 2})
        assert (second.revision, second.run, second.created_at) == (2, "r", first.created_at)
        with pytest.raises(FactConflictError, match="kind/key"):
            facts.update(first, {"n": 3})
        assert facts.get("kind", "key") == second

    def test_an_update_of_nothing_is_a_conflict(self, facts: SqlFacts) -> None:
        fact = facts.insert("kind", "key", {})
        with pytest.raises(FactConflictError):
            facts.update(type(fact)("kind", "other", 1, {}, "", fact.created_at), {})
        assert facts.get("kind", "other") is None

    def test_compare_and_swap_loses_no_increment(self, facts: SqlFacts) -> None:
        facts.insert("counter", "n", {"n": 0})

        def increment() -> None:
            while True:
                fact = facts.get("counter", "n")
                assert fact is not None
                try:
                    facts.update(fact, {"n": int(str(fact.body["n"])) + 1})
                except FactConflictError:
                    continue
                return

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: [increment() for _ in range(25)], range(8)))
        fact = facts.get("counter", "n")
        assert fact is not None
        assert (fact.body, fact.revision) == ({"n": 200}, 201)

    def test_find_returns_the_newest_first_of_the_kind_the_run_and_the_prefix(self, facts: SqlFacts) -> None:
        for number, key in enumerate(["m/1", "m/2", "M/3", "m%", "m_", "n/1", "m"]):
            facts.insert("kind", key, {"n": number}, run=f"r{number % 2}")
        facts.insert("other", "m/9", {})
        assert [fact.key for fact in facts.find("kind")] == ["m", "n/1", "m_", "m%", "M/3", "m/2", "m/1"]
        assert [fact.key for fact in facts.find("kind", limit=2)] == ["m", "n/1"]
        assert [fact.key for fact in facts.find("kind", prefix="m/")] == ["m/2", "m/1"], "case and wildcards count"
        assert [fact.key for fact in facts.find("kind", prefix="m_")] == ["m_"]
        assert [fact.key for fact in facts.find("kind", run="r1", prefix="m")] == ["m%", "m/2"]
        assert facts.find("kind", run="") == []

    @pytest.mark.parametrize("prefix", ["a\U0010ffff", "\U0010ffff", "\ud7ff", "é"])
    def test_a_prefix_may_end_in_any_character(self, facts: SqlFacts, prefix: str) -> None:
        facts.insert("kind", prefix + "x", {})
        facts.insert("kind", "0", {})
        assert [fact.key for fact in facts.find("kind", prefix=prefix)] == [prefix + "x"]

    @pytest.mark.parametrize("body", [{"loss": float("nan")}, {"x": float("inf")}, {"x": b"1"}, {"x": "\ud800"}])
    def test_what_is_not_json_is_refused(self, facts: SqlFacts, body: dict[str, object]) -> None:
        with pytest.raises(InvalidRecordError, match="kind/key"):
            facts.insert("kind", "key", body)  # type: ignore[arg-type]
        assert facts.find("kind") == []

    @pytest.mark.parametrize(("kind", "key"), [("", "k"), ("k", ""), ("k", "a\x00b"), ("k\ud800", "k")])
    def test_what_is_no_key_is_refused(self, facts: SqlFacts, kind: str, key: str) -> None:
        with pytest.raises(InvalidRecordError):
            facts.insert(kind, key, {})

    def test_times_are_utc_and_sort(self, facts: SqlFacts) -> None:
        times = [facts.insert("kind", str(number), {}).created_at for number in range(20)]
        assert times == sorted(times)
        assert {(len(time), time[10], time[-1]) for time in times} == {(27, "T", "Z")}

    # --- audit ---

    def test_the_audit_log_is_read_oldest_first(self, facts: SqlFacts) -> None:
        numbers = [facts.append_audit(event(number, subject=f"s{number % 2}")) for number in range(5)]
        assert numbers == [1, 2, 3, 4, 5]
        assert [(seq, found.details["number"]) for seq, _, found in facts.audit()] == list(enumerate(range(5), start=1))
        assert [found for _, _, found in facts.audit(subject="s1")] == [event(1, "s1"), event(3, "s1")]
        assert [seq for seq, _, _ in facts.audit(limit=2)] == [4, 5], "the last ones"
        assert facts.verify_audit() == 5

    def test_an_empty_audit_log_verifies(self, facts: SqlFacts) -> None:
        assert facts.verify_audit() == 0
        assert facts.audit() == []

    def test_concurrent_appends_make_one_chain(self, facts: SqlFacts, dsn: str) -> None:
        def append(worker: int) -> list[int]:
            with open_facts(dsn) as own:
                return [own.append_audit(event(worker)) for _ in range(8)]

        with ThreadPoolExecutor(8) as pool:
            numbers = sorted(seq for seqs in pool.map(append, range(8)) for seq in seqs)
        assert numbers == list(range(1, 65))
        assert facts.verify_audit() == 64

    def test_the_database_refuses_to_change_the_audit_log(self, facts: SqlFacts) -> None:
        facts.append_audit(event())
        for statement in ("UPDATE audit_log SET actor = 'eve'", "DELETE FROM audit_log"):
            with pytest.raises(sa.exc.DBAPIError, match="append-only"), facts._engine.begin() as connection:
                connection.execute(sa.text(statement))
        assert facts.verify_audit() == 1

    @pytest.mark.parametrize(
        "change",
        [
            "UPDATE audit_log SET actor = 'eve' WHERE seq = 3",
            "UPDATE audit_log SET action = 'approved' WHERE seq = 3",
            "UPDATE audit_log SET subject = 'model/other' WHERE seq = 3",
            "UPDATE audit_log SET at = '2020-01-01T00:00:00.000000Z' WHERE seq = 3",
            """UPDATE audit_log SET body = '{"number": 2, "loss": 1.25}' WHERE seq = 3""",
            "UPDATE audit_log SET body = '[]' WHERE seq = 3",
            "UPDATE audit_log SET digest = prev_digest WHERE seq = 3",
            "DELETE FROM audit_log WHERE seq = 3",
        ],
    )
    def test_a_row_changed_behind_our_back_is_found_and_named(self, facts: SqlFacts, change: str) -> None:
        for number in range(5):
            facts.append_audit(event(number))
        self.alter(facts, change)
        with pytest.raises(IntegrityError, match="audit event 3 of"):
            facts.verify_audit()

    def test_a_forged_event_with_a_digest_of_its_own_breaks_the_next_link(self, facts: SqlFacts) -> None:
        from deepseek_ops.adapters.facts.audit_log import chained_digest

        for number in range(3):
            facts.append_audit(event(number))
        (_, at, old) = facts.audit()[1]
        with facts._engine.begin() as connection:
            before = connection.scalar(sa.text("SELECT digest FROM audit_log WHERE seq = 1"))
        forged = chained_digest(2, at, old.evolve(actor="eve"), str(before))
        self.alter(facts, f"UPDATE audit_log SET actor = 'eve', digest = '{forged}' WHERE seq = 2")  # noqa: S608
        with pytest.raises(IntegrityError, match="audit event 3 of"):
            facts.verify_audit()

    # --- opening ---

    def test_many_processes_may_open_a_new_database_at_once(self, dsn: str) -> None:
        import alembic.command  # noqa: F401  (or the children would arrive one by one, as fast as they import it)

        context = multiprocessing.get_context("fork")
        barrier = context.Barrier(8)
        processes = [context.Process(target=_open_and_insert, args=(dsn, str(number), barrier)) for number in range(8)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0] * 8
        with open_facts(dsn, migrate=False) as facts:
            assert len(facts.find("k")) == 8

    def test_without_migrate_a_database_without_schema_is_refused(self, dsn: str) -> None:
        with pytest.raises((FactsSchemaError, FactsAccessError)):
            open_facts(dsn, migrate=False)

    def test_a_database_of_a_newer_release_is_refused_and_left_alone(self, facts: SqlFacts, dsn: str) -> None:
        self.alter(facts, f"UPDATE {schema.VERSION_TABLE} SET version_num = '9999'")  # noqa: S608
        for migrate in (True, False):
            with pytest.raises(FactsSchemaError, match=r"9999.*newer deepseek-ops"):
                open_facts(dsn, migrate=migrate)

    def test_the_migrations_make_the_tables_that_the_code_reads(self, facts: SqlFacts) -> None:
        from alembic.autogenerate import compare_metadata
        from alembic.migration import MigrationContext

        with facts._engine.begin() as connection:
            context = MigrationContext.configure(connection, opts={"version_table": schema.VERSION_TABLE})
            assert compare_metadata(context, schema.metadata) == []

    def test_a_killed_writer_leaves_all_or_nothing(self, facts: SqlFacts, dsn: str) -> None:
        reader, writer = multiprocessing.Pipe(duplex=False)
        process = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(dsn, writer))
        process.start()
        writer.close()
        done = [reader.recv() for _ in range(20)]
        process.kill()
        process.join()
        while reader.poll():
            try:
                done.append(reader.recv())
            except EOFError:
                break
        acknowledged = done[-1]
        assert len(facts.find("k")) in (acknowledged, acknowledged + 1)
        assert facts.verify_audit() in range(acknowledged, acknowledged + 3)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_a_forked_child_uses_connections_of_its_own(self, facts: SqlFacts) -> None:
        facts.insert("k", "parent", {})
        child = os.fork()
        if child == 0:
            inherited = facts._engine.pool.status()
            try:
                facts.insert("k", "child", {})
            finally:  # never back into pytest
                os._exit(0 if "Connections in pool: 0" in inherited and facts.get("k", "child") else 1)
        assert os.waitpid(child, 0)[1] == 0
        facts.insert("k", "parent again", {})
        assert [fact.key for fact in facts.find("k")] == ["parent again", "child", "parent"]


def _open_and_insert(dsn: str, key: str, barrier: Barrier) -> None:
    barrier.wait(60)
    open_facts(dsn).insert("k", key, {})


def _write_for_ever(dsn: str, done: Connection) -> None:
    facts = open_facts(dsn)
    for number in itertools.count():
        facts.append_audit(event(number))
        facts.insert("k", str(number), {"n": number})
        done.send(number + 1)


def _chain(error: BaseException | None) -> Iterator[str]:
    while error is not None:
        yield str(error)
        error = error.__cause__ or error.__context__
