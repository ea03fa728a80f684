"""Operators: parse, call, dump. One module per domain package; nothing heavy is imported when a DAG is parsed."""
