"""Sensors: the same waiting as the triggers, inside a DAG, without a worker slot."""
