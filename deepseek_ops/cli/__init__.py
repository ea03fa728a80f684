"""The command line: the same domain code as the DAGs."""
