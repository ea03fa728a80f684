"""Use cases: the one place where domain packages meet."""
