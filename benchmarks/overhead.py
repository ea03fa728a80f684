"""Where the wall time of the demo goes: Airflow's start, per-task overhead, real work; beside a trivial task.

    python benchmarks/overhead.py [--root FOLDER]

Runs the demo once and keeps its servers, then runs a DAG of trivial tasks on the same Airflow, and ends everything.
A task's overhead is its wall time (queued until ended) less the wall time of the jobs it followed; the trivial task
does nothing, so all of its time is Airflow's. Times of one run on a shared machine: read the ratios.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

from deepseek_ops.adapters.local_launcher import LocalLauncher
from deepseek_ops.embedded.airflow_standalone import AirflowClient

PROJECT = Path(__file__).parents[1]
TRIVIAL = "benchmark_trivial"
TRIVIAL_DAG = f'''"""A chain of tasks that do nothing (made by benchmarks/overhead.py, removed by it)."""
from airflow.sdk import dag, task

@dag(dag_id="{TRIVIAL}", schedule=None)
def trivial():
    @task
    def nothing(before=None):
        return 1
    value = None
    for _ in range(5):
        value = nothing(value)

trivial()
'''
JOBS = {
    "prepare_dataset": "prepare-",
    "run_trial": "train-",
    "train": "train-",
    "evaluate": "evaluate-",
    "export": "export-",
    "start_serving": "serve-",
}


def seconds_between(begin: object, end: object) -> float:
    """Return the seconds between two ISO times of Airflow's API."""
    first, last = (datetime.fromisoformat(str(moment)) for moment in (begin, end))
    return (last - first).total_seconds()


def wait_for_run(client: AirflowClient, dag_id: str, run_id: str, limit: float = 300) -> None:
    """Return when the run has ended."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        if client.get(f"/dags/{dag_id}/dagRuns/{run_id}")["state"] in ("success", "failed"):
            return
        time.sleep(0.5)
    raise TimeoutError(f"{dag_id} {run_id}")


def task_seconds(client: AirflowClient, dag_id: str) -> list[tuple[str, float]]:
    """Return (task, seconds from queued to ended) of the newest run's tasks that ran."""
    run_id = str(client.runs(dag_id)[0]["dag_run_id"])
    return [
        (str(row["task_id"]), seconds_between(row["queued_when"], row["end_date"]))
        for row in client.tasks(dag_id, run_id)
        if row.get("queued_when") and row.get("end_date") and row["state"] == "success"
    ]


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=None)
    root = parser.parse_args().root or Path(tempfile.mkdtemp(prefix="deepseek-ops-overhead-")) / "stack"
    cli = [sys.executable, "-m", "deepseek_ops.cli.main"]
    dag_file = PROJECT / "dags" / f"{TRIVIAL}.py"
    began = time.monotonic()
    try:
        done = subprocess.run(
            [*cli, "demo", "--keep", "--root", str(root)], cwd=PROJECT, capture_output=True, text=True, check=False
        )
        if done.returncode:
            print(done.stdout, done.stderr)
            return 1
        total = time.monotonic() - began
        client = AirflowClient(
            re.search(r"Airflow: (http://\S+)", done.stdout)[1],
            *re.search(r"login (\S+) / (\S+)", done.stdout).groups(),
        )
        report(client, root, done.stdout, total, trivial_seconds(client, dag_file))
    finally:
        dag_file.unlink(missing_ok=True)
        subprocess.run([*cli, "stop", "--root", str(root)], cwd=PROJECT, check=False, timeout=120)
    return 0


def trivial_seconds(client: AirflowClient, dag_file: Path) -> float:
    """Return the median seconds of a task that does nothing, on this Airflow, after one warm-up run."""
    dag_file.write_text(TRIVIAL_DAG)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            client.unpause(TRIVIAL)
            break
        except Exception:  # noqa: BLE001  (not parsed yet)
            time.sleep(1)
    found: list[float] = []
    for _ in range(3):
        run = client.post(f"/dags/{TRIVIAL}/dagRuns", {"logical_date": None})
        wait_for_run(client, TRIVIAL, str(run["dag_run_id"]))
        found = [seconds for _, seconds in task_seconds(client, TRIVIAL)]
    return statistics.median(found)


def report(client: AirflowClient, root: Path, output: str, total: float, trivial: float) -> None:
    """Print the shares and the per-task overhead."""
    jobs = {status.name: status.wall_seconds for status in LocalLauncher(root / "jobs").list()}
    work = {prefix: [s for name, s in jobs.items() if name.startswith(prefix)] for prefix in set(JOBS.values())}
    rows = [
        (task, seconds) for dag_id in ("retrain", "release", "deploy") for task, seconds in task_seconds(client, dag_id)
    ]
    plain = [seconds for task, seconds in rows if task not in JOBS]
    started = float(re.search(r"airflow start (\d+) s", output)[1])
    real = sum(sum(seconds) for prefix, seconds in work.items() if prefix != "serve-")
    result = {
        "total_s": round(total, 1),
        "airflow_start_s": started,
        "job_wall_s": round(real, 1),
        "tasks": len(rows),
        "task_without_job_median_s": round(statistics.median(plain), 2),
        "trivial_task_median_s": round(trivial, 2),
        "ratio_to_trivial": round(statistics.median(plain) / trivial, 2),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    sys.exit(main())
