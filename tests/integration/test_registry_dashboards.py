"""The queries of ``include/sql`` give the same, right answers on SQLite and on PostgreSQL."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa
from fixtures_postgres import postgres_dsn, postgres_server  # noqa: F401  (fixtures)
from fixtures_registry import folder_registry, make_parts

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.adapters.facts.store import SqlFacts
from deepseek_ops.core.jobs import JobPhase, JobStatus
from deepseek_ops.cost import account, load_prices
from deepseek_ops.data import StoreBlobs
from deepseek_ops.registry import Registry

QUERIES = Path(__file__).parents[2] / "include" / "sql"


@pytest.fixture(params=["sqlite", "postgres"])
def facts(request: pytest.FixtureRequest, tmp_path: Path) -> SqlFacts:
    """Two versions, three moves of the champion, and the cost of a lost and a good attempt."""
    dsn = f"sqlite:///{tmp_path}/f.db" if request.param == "sqlite" else request.getfixturevalue("postgres_dsn")
    facts = open_facts(dsn)
    folder = folder_registry(tmp_path)
    assert isinstance(folder.blobs, StoreBlobs)
    registry = Registry(folder.store, folder.blobs, facts)
    for number in range(2):
        parts = make_parts(folder.blobs, tmp_path, number)
        registry.register(manifest=parts.manifest, checkpoint=parts.checkpoint, actor="airflow")
    for version in ("0.1.0", "0.2.0", "0.1.0"):
        registry.set_alias("tiny", "champion", version, actor="ada", reason=f"to {version}")
    for attempt, (phase, label) in enumerate([(JobPhase.LOST, "failed"), (JobPhase.SUCCEEDED, "productive")], start=1):
        status = JobStatus(name="train-1", phase=phase, attempt=attempt, device_seconds=3600.0 * attempt**2)
        account(facts, load_prices(), run="run-1", status=status, label=label)
    return facts


def ask(facts: SqlFacts, name: str) -> list[dict[str, object]]:
    text = (QUERIES / f"{name}.sql").read_text()
    with facts._engine.begin() as connection:
        return [dict(row._mapping) for row in connection.execute(sa.text(text))]


def test_every_query_runs(facts: SqlFacts) -> None:
    names = sorted(path.stem for path in QUERIES.glob("*.sql"))
    assert names
    assert all(ask(facts, name) for name in names)


def test_cost_by_day_adds_up_what_each_label_cost(facts: SqlFacts) -> None:
    price = load_prices().price("cpu").usd_per_hour
    rows = {row["label"]: (row["usd"], row["device_hours"]) for row in ask(facts, "cost_by_day")}
    assert rows == {"failed": (pytest.approx(price), 1.0), "productive": (pytest.approx(3 * price), 3.0)}


def test_cost_by_run_says_what_was_useful(facts: SqlFacts) -> None:
    [row] = ask(facts, "cost_by_run")
    price = load_prices().price("cpu").usd_per_hour
    assert (row["run"], row["entries"]) == ("run-1", 2)
    assert (row["usd"], row["useful_usd"]) == (pytest.approx(4 * price), pytest.approx(3 * price))


def test_model_versions_come_newest_first_with_their_aliases(facts: SqlFacts) -> None:
    rows = ask(facts, "model_versions")
    assert [(row["version"], row["alias"], row["val_loss"]) for row in rows] == [
        ("0.2.0", None, 2.75),
        ("0.1.0", "champion", 2.75),
    ]


def test_serving_history_has_no_gap(facts: SqlFacts) -> None:
    rows = ask(facts, "serving_history")
    assert [(row["version"], row["replaces"]) for row in rows] == [
        ("0.1.0", "0.2.0"),
        ("0.2.0", "0.1.0"),
        ("0.1.0", ""),
    ]
    assert rows[0]["until"] is None
    assert [row["until"] for row in rows[1:]] == [row["since"] for row in rows[:-1]]


def test_audit_by_actor_counts_events(facts: SqlFacts) -> None:
    rows = {(row["actor"], row["action"]): row["events"] for row in ask(facts, "audit_by_actor")}
    assert rows == {("ada", "moved_alias"): 3, ("airflow", "registered"): 2}
