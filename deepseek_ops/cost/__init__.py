"""Prices, cost entries and budgets."""
