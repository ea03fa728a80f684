"""Prices, cost entries and budgets.

Cost = device-seconds x price, labelled by what the seconds bought. Decision: prices come from a dated file that a team
keeps, not from a cloud's price API: a contract's prices are in no API, and an old run must keep its cost when prices
change. What that costs: somebody has to keep the file.
"""

from deepseek_ops.cost.entries import (
    COST,
    CostSummary,
    account,
    cost_entry,
    entries_of,
    spent,
    summarise,
    within_budget,
)
from deepseek_ops.cost.prices import Price, PriceList, UnknownDeviceError, load_prices

__all__ = [
    "COST",
    "CostSummary",
    "Price",
    "PriceList",
    "UnknownDeviceError",
    "account",
    "cost_entry",
    "entries_of",
    "load_prices",
    "spent",
    "summarise",
    "within_budget",
]
