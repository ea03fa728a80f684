"""Formats, their parity tolerances, and the configuration that is published with a model."""
