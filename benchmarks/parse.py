"""How long Airflow needs to read each DAG file, beside a DAG file that imports torch at its top.

    python benchmarks/parse.py [--runs 5]

Each figure is the median over fresh processes that import Airflow and then read one file, as Airflow's DAG processor
does, in seconds and as a ratio to an empty DAG file. Everything of ours that the file imports counts. The bar is 0.1 s.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).parents[1]
EMPTY = "from airflow.sdk import dag\n\n@dag(schedule=None)\ndef empty():\n    pass\n\nempty()\n"
HEAVY = "import torch\n" + EMPTY.replace("empty", "heavy")
CHILD = """
import importlib.util, json, sys, time
import airflow.sdk, airflow.dag_processing.dagbag
from airflow.providers.standard.operators import branch, hitl, python, trigger_dagrun
from airflow.timetables import assets, trigger
airflow.sdk.Asset(name="first", uri="deepseek-ops://first")  # loads what installed providers bring for asset URIs
path = sys.argv[1]
spec = importlib.util.spec_from_file_location("dag_" + path.rsplit("/", 1)[1][:-3], path)
module = importlib.util.module_from_spec(spec)
began = time.perf_counter()
spec.loader.exec_module(module)
print(json.dumps(time.perf_counter() - began))
"""


def main() -> int:
    """Print a table; return 1 when a file of ours misses the bar."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "empty.py").write_text(EMPTY)
        (Path(folder) / "heavy.py").write_text(HEAVY)
        ours = sorted(str(path) for path in (PROJECT / "dags").glob("*.py"))
        others = [str(Path(folder) / name) for name in ("empty.py", "heavy.py")]
        environment = {**os.environ, "AIRFLOW_HOME": folder, "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
        samples: dict[str, list[float]] = {}
        for path in [*ours, *others] * runs:
            command = [sys.executable, "-c", CHILD, path]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
            samples.setdefault(Path(path).name, []).append(json.loads(done.stdout.splitlines()[-1]))
    medians = {name: statistics.median(found) for name, found in samples.items()}
    missed = 0
    print(f"{'file':<22}{'seconds':>9}{'x empty':>9}")
    for name, seconds in sorted(medians.items(), key=lambda item: item[1]):
        ours_too_slow = name not in ("empty.py", "heavy.py") and seconds > 0.1
        missed += ours_too_slow
        ratio = seconds / medians["empty.py"]
        print(f"{name:<22}{seconds:>9.4f}{ratio:>9.1f}{'  over 0.1 s' if ours_too_slow else ''}")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
