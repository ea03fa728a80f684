"""Device-seconds become money once, and the price list refuses what it cannot mean."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.adapters.facts.store import SqlFacts
from deepseek_ops.core.config import InvalidPipelineError
from deepseek_ops.core.errors import ConfigError, InvalidRecordError
from deepseek_ops.core.jobs import JobPhase, JobStatus
from deepseek_ops.core.records import CostEntry
from deepseek_ops.cost import (
    PriceList,
    UnknownDeviceError,
    account,
    cost_entry,
    entries_of,
    load_prices,
    spent,
    summarise,
    within_budget,
)

PRICES = PriceList.model_validate(
    {
        "prices": [
            {"device": "cpu", "usd_per_hour": 0.5, "date": "2026-01-01", "source": "test"},
            {"device": "cpu", "usd_per_hour": 1.0, "date": "2026-06-01", "source": "test"},
            {"device": "h100", "usd_per_hour": 3.6, "date": "2026-01-01", "source": "test"},
        ]
    }
)
JOB = "train-1"


@pytest.fixture
def facts(tmp_path: Path) -> SqlFacts:
    return open_facts(f"sqlite:///{tmp_path}/facts.db")


def status(phase: JobPhase, attempt: int, device_seconds: float) -> JobStatus:
    return JobStatus(name=JOB, phase=phase, attempt=attempt, device_seconds=device_seconds)


def test_the_price_list_of_the_project_prices_cpu_and_says_where_each_price_is_from() -> None:
    prices = load_prices()
    assert prices.price("cpu").usd_per_hour > 0
    assert all(one.source and one.date for one in prices.prices)


def test_the_newest_price_counts_and_an_old_day_keeps_its_own() -> None:
    assert PRICES.price("cpu").usd_per_hour == 1.0
    assert PRICES.price("cpu", on=date(2026, 5, 31)).usd_per_hour == 0.5
    assert PRICES.price("cpu", on=date(2026, 6, 1)).usd_per_hour == 1.0


def test_a_device_without_a_price_is_named_with_the_known_ones() -> None:
    with pytest.raises(UnknownDeviceError, match=r"'b200'; the price list has cpu, h100\."):
        PRICES.price("b200")
    with pytest.raises(UnknownDeviceError, match="2025-12-31"):
        PRICES.price("cpu", on=date(2025, 12, 31))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prices: [{device: cpu, usd_per_hour: -1, date: '2026-01-01', source: s}]", "usd_per_hour"),
        ("prices: [{device: cpu, usd_per_hour: .nan, date: '2026-01-01', source: s}]", "usd_per_hour"),
        ("prices: [{device: cpu, usd_per_hour: 1, date: '2026-13-01', source: s}]", "date"),
        ("prices: [{device: cpu, usd_per_hour: 1, date: '2026-01-01'}]", "source"),
        ("prices: [{device: cpu, usd: 1, date: '2026-01-01', source: s}]", "usd"),
        ("prices: []", "prices"),
        ("- 1", "mapping"),
        (
            "prices: [&p {device: cpu, usd_per_hour: 1, date: '2026-01-01', source: s}, *p]",
            "two prices on 2026-01-01",
        ),
    ],
)
def test_a_wrong_price_list_is_refused_by_line_and_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(InvalidPipelineError, match=message) as caught:
        load_prices(path)
    assert str(path) in str(caught.value)


def test_a_list_of_ones_own_is_named_by_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "prices.yaml"
    monkeypatch.setenv("DEEPSEEK_OPS_PRICES", str(path))
    with pytest.raises(ConfigError, match=r"prices\.yaml.*DEEPSEEK_OPS_PRICES"):
        load_prices()
    path.write_text("prices: [{device: cpu, usd_per_hour: 9, date: '2026-01-01', source: contract}]")
    assert load_prices().price("cpu").usd_per_hour == 9


def test_an_hour_costs_the_hourly_price() -> None:
    entry = cost_entry(PRICES, run="r", job="j", label="productive", device="h100", device_seconds=1800)
    assert entry.usd == pytest.approx(1.8)
    with pytest.raises(InvalidRecordError, match="label='lunch'"):
        cost_entry(PRICES, run="r", job="j", label="lunch", device="h100", device_seconds=1)


def test_an_attempt_is_accounted_once_whoever_calls(facts: SqlFacts) -> None:
    done = status(JobPhase.SUCCEEDED, 1, 7200)

    def once(run: int) -> CostEntry:
        return account(facts, PRICES, run=f"r{run}", status=done, label="productive")

    with ThreadPoolExecutor(8) as pool:
        entries = set(pool.map(once, range(8)))
    assert len(entries) == 1
    assert [entry.usd for entry in entries_of(facts)] == [pytest.approx(2.0)]


def test_a_second_attempt_pays_only_for_what_the_first_did_not(facts: SqlFacts) -> None:
    account(facts, PRICES, run="r", status=status(JobPhase.LOST, 1, 3600), label="failed")
    account(facts, PRICES, run="r", status=status(JobPhase.SUCCEEDED, 2, 3600 + 1800), label="productive")
    account(facts, PRICES, run="r", status=status(JobPhase.SUCCEEDED, 2, 3600 + 1800), label="productive")
    summary = summarise(entries_of(facts, "r"))
    assert summary.usd_by_label == {"productive": pytest.approx(0.5), "failed": pytest.approx(1.0)}
    assert summary.device_seconds == 5400
    assert summary.useful_share == pytest.approx(1 / 3)
    assert spent(facts, "r") == pytest.approx(1.5)
    assert spent(facts, "other") == 0


def test_a_job_whose_name_begins_like_another_is_another(facts: SqlFacts) -> None:
    longer = status(JobPhase.SUCCEEDED, 1, 3600).evolve(name="train-12")
    account(facts, PRICES, run="r", status=longer, label="productive")
    mine = account(facts, PRICES, run="r", status=status(JobPhase.SUCCEEDED, 1, 3600), label="productive")
    assert mine.device_seconds == 3600


@given(st.lists(st.tuples(st.sampled_from(["productive", "failed", "pruned"]), st.floats(0, 1e6)), max_size=20))
def test_the_parts_of_a_summary_add_up(rows: list[tuple[str, float]]) -> None:
    entries = [
        cost_entry(PRICES, run="r", job=f"j{at}", label=label, device="cpu", device_seconds=seconds)
        for at, (label, seconds) in enumerate(rows)
    ]
    summary = summarise(entries)
    for parts in (summary.usd_by_label, summary.usd_by_device, summary.usd_by_job):
        assert sum(parts.values()) == pytest.approx(summary.usd)
    assert 0 <= summary.useful_share <= 1


def test_a_budget_ends_when_it_is_used_up() -> None:
    assert within_budget(0.99, 1.0)
    assert not within_budget(1.0, 1.0)
    assert within_budget(1e9, None)
