"""What jobs cost, written once per attempt and label, and what it adds up to."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import Field

from deepseek_ops.core.errors import ObjectExistsError
from deepseek_ops.core.jobs import JobStatus
from deepseek_ops.core.ports import Facts
from deepseek_ops.core.records import CostEntry, Record
from deepseek_ops.cost.prices import PriceList

COST = "cost"
"""Kind of the facts that hold CostEntry records, under ``<job>/<attempt>/<label>``."""
USEFUL = ("productive", "serving")
"""Labels that bought a result; the others are overhead or waste."""
_LIMIT = 100_000


class CostSummary(Record):
    """What some entries add up to, in US dollars and device-seconds."""

    usd: float = Field(ge=0)
    device_seconds: float = Field(ge=0)
    usd_by_label: dict[str, float] = Field(default_factory=dict)
    usd_by_device: dict[str, float] = Field(default_factory=dict)
    usd_by_job: dict[str, float] = Field(default_factory=dict)
    useful_share: float = Field(ge=0, le=1, description="Of the device-seconds; 1 when there were none.")


def cost_entry(prices: PriceList, *, run: str, job: str, label: str, device: str, device_seconds: float) -> CostEntry:
    """Return the entry with its price applied. Raises UnknownDeviceError, and InvalidRecordError for a wrong label."""
    hourly = prices.price(device).usd_per_hour
    return CostEntry.load(
        {
            "run": run,
            "job": job,
            "label": label,
            "device": device,
            "device_seconds": device_seconds,
            "usd": device_seconds / 3600 * hourly,
        }
    )


def account(
    facts: Facts, prices: PriceList, *, run: str, status: JobStatus, label: str, device: str = "cpu"
) -> CostEntry:
    """Store what the job's latest attempt cost and return the entry; a second call returns the first one's.

    A status counts the device-seconds of all attempts, so those that are stored already are taken off: an attempt
    that was lost stays labelled as it was and is not paid twice. A job that several runs share is paid by the first.
    """
    key = f"{status.name}/{status.attempt}/{label}"
    stored = {fact.key: CostEntry.load(fact.body) for fact in facts.find(COST, prefix=f"{status.name}/", limit=_LIMIT)}
    if key in stored:
        return stored[key]
    seconds = max(status.device_seconds - sum(entry.device_seconds for entry in stored.values()), 0.0)
    entry = cost_entry(prices, run=run, job=status.name, label=label, device=device, device_seconds=seconds)
    try:
        facts.insert(COST, key, entry.dump(), run=run)
    except ObjectExistsError:
        fact = facts.get(COST, key)
        return CostEntry.load(fact.body) if fact is not None else entry
    return entry


def entries_of(facts: Facts, run: str | None = None) -> list[CostEntry]:
    """Return the stored entries of a run, or of all runs, newest first."""
    return [CostEntry.load(fact.body) for fact in facts.find(COST, run=run, limit=_LIMIT)]


def spent(facts: Facts, run: str) -> float:
    """Return what a run has cost so far, in US dollars."""
    return sum(entry.usd for entry in entries_of(facts, run))


def summarise(entries: Iterable[CostEntry]) -> CostSummary:
    """Return the totals of the entries: in all, by label, by device and by job."""
    rows = list(entries)
    seconds = sum(entry.device_seconds for entry in rows)
    useful = sum(entry.device_seconds for entry in rows if entry.label in USEFUL)
    return CostSummary(
        usd=sum(entry.usd for entry in rows),
        device_seconds=seconds,
        usd_by_label=_total((entry.label, entry.usd) for entry in rows),
        usd_by_device=_total((entry.device, entry.usd) for entry in rows),
        usd_by_job=_total((entry.job, entry.usd) for entry in rows),
        useful_share=min(useful / seconds, 1.0) if seconds else 1.0,
    )


def within_budget(spent_usd: float, budget_usd: float | None) -> bool:
    """Return whether more may be spent: the budget is not used up. None is no limit."""
    return budget_usd is None or spent_usd < budget_usd


def _total(pairs: Iterable[tuple[str, float]]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for name, usd in pairs:
        totals[name] = totals.get(name, 0.0) + usd
    return totals
