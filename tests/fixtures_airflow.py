"""A migrated Airflow database to copy: making one takes longer than most runs in it."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def copy_of_migrated_database(factory: pytest.TempPathFactory, home: Path) -> Path:
    """Make ``home`` with Airflow's database in it, as ``airflow db migrate`` leaves it; return the file.

    It is migrated once for all workers of a test run: the first one makes it, the others wait.
    """
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    made = shared / "airflow-migrated.db"
    with (shared / "airflow-migrated.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            first = factory.mktemp("airflow-migration")
            place = {"AIRFLOW_HOME": str(first), "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{first}/airflow.db"}
            command = [sys.executable, "-m", "airflow", "db", "migrate"]
            subprocess.run(command, env={**os.environ, **place}, check=True, capture_output=True, timeout=280)
            (first / "airflow.db").rename(made)
    home.mkdir(exist_ok=True)
    return Path(shutil.copy(made, home / "airflow.db"))
