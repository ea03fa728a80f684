"""Stages, paired comparisons and verdicts."""
