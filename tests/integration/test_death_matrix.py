"""A few cells of the death matrix: the whole of it is ``benchmarks/death_matrix.py``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.heavy
MATRIX = Path(__file__).parents[2] / "benchmarks" / "death_matrix.py"


@pytest.mark.slow  # eight jobs, each submitted by an interpreter of its own
def test_whoever_is_killed_in_whichever_phase_one_attempt_runs_and_nothing_is_lost() -> None:
    command = [sys.executable, str(MATRIX), "--seed", "3", "--repetitions", "1"]
    cells = ["--victims", "supervisor,worker,rank,lease", "--phases", "submitting,checkpointing"]
    done = subprocess.run([*command, *cells], capture_output=True, text=True, check=False, timeout=300)
    report = json.loads(done.stdout)
    assert report["broken"] == [], done.stderr
    assert done.returncode == 0
    assert report["killed"] >= 6, report["cells"]
    assert report["attempts"] >= 4, "killed attempts were not followed by others"
