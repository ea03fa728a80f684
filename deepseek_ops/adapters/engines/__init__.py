"""Schedulers of machines: where the commands of a job that needs more than this machine run."""
