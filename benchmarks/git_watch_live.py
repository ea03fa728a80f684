"""From a push to a queued run on a real Airflow, beside the interval at which the watcher asks.

    python benchmarks/git_watch_live.py [--pushes 10] [--json FILE]

Starts S3, a Git server and Airflow, and pushes branches whose pipeline file is broken on purpose: their runs are queued
like any other and end at once, so the scheduler is not busy with trainings. Measured is the time from the end of
``git push`` to the ``queued_at`` that Airflow itself notes on the run (both on this machine's clock). That is the
watcher's interval, one asset event and one round of the scheduler. A second series rings the webhook's bell after each
push, as a Git host would. Times of one run on a shared machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path

import httpx
from pydantic import JsonValue

from deepseek_ops.adapters.facts import open_facts
from deepseek_ops.cli.demo import wait_for_watcher
from deepseek_ops.cli.demo_repository import DemoRepository
from deepseek_ops.embedded.stack import GIT_USER, Stack
from deepseek_ops.pipeline.wakes import Wakes

PROJECT = Path(__file__).resolve().parents[1]
DAG = "retrain"
PATIENCE_SECONDS = 120.0


def runs_of(stack: Stack) -> list[dict[str, JsonValue]]:
    """Return the DAG's runs; none while the API server of a busy machine does not answer: it is asked again."""
    try:
        return stack.client.runs(DAG)
    except httpx.TimeoutException:
        return []


def queued_at(stack: Stack, seen: set[str], pushed: float) -> float:
    """Return when the run that is not among ``seen`` was queued, Unix seconds; adds it to ``seen``."""
    while time.time() - pushed < PATIENCE_SECONDS:
        for run in runs_of(stack):
            run_id = str(run["dag_run_id"])
            if run_id not in seen and run["queued_at"]:
                seen.add(run_id)
                return datetime.fromisoformat(str(run["queued_at"])).timestamp()
        time.sleep(0.1)
    raise TimeoutError(f"no run was queued within {PATIENCE_SECONDS:.0f} s of the push")


def measure(stack: Stack, user: DemoRepository, *, pushes: int, name: str, ring: bool) -> list[float]:
    """Return the seconds from each push to its queued run."""
    wakes = Wakes(open_facts(stack.facts_dsn))
    seen = {str(run["dag_run_id"]) for run in stack.client.runs(DAG)}
    found = []
    for number in range(pushes):
        user._git("checkout", "--quiet", "-B", f"exp/{name}-{number}", "origin/main")
        pipeline = user._folder / "deepseek.yaml"
        pipeline.write_text(pipeline.read_text().replace("gpus_per_node:", f"gpus_per_nod_{number}:"))
        user._git("commit", "--quiet", "--all", "--message", f"Broken on purpose, {name} {number}")
        user._git("push", "--quiet", "origin", f"exp/{name}-{number}")
        pushed = time.time()
        if ring:
            wakes.ring("deepseek_ops_git", f"{name}-{number}-{pushed}")
        found.append(queued_at(stack, seen, pushed) - pushed)
        print(f"{name} {number}: {found[-1]:.2f} s", flush=True)
        time.sleep(0.37)  # so that pushes do not fall into step with the polls
    return found


def main() -> None:
    """Start everything, push, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--pushes", type=int, default=10)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="git-watch-live-") as folder:
        stack = Stack(Path(folder), dags=PROJECT / "dags")
        with stack.running():
            stack.start_servers()
            user = DemoRepository(
                stack.git_url,
                username=GIT_USER,
                token=stack.git_token,
                folder=Path(folder) / "clone",
                template=PROJECT / "include" / "examples" / "tiny-deepseek",
            )
            user.prepare()
            stack.start_airflow()
            stack.airflow.wait_healthy()
            stack.prepare_airflow(unpause=(DAG,))
            wait_for_watcher(stack.client, timeout=120)  # a push before its first look would be history to it
            warm_up = measure(stack, user, pushes=1, name="first", ring=False)
            report = {
                "poll": measure(stack, user, pushes=options.pushes, name="poll", ring=False),
                "webhook": measure(stack, user, pushes=options.pushes, name="webhook", ring=True),
            }
    from deepseek_ops.airflow.assets import MODEL_REPOSITORY  # after the measurement: it imports Airflow

    interval = MODEL_REPOSITORY.watchers[0].trigger.poll_interval
    print(f"\nwatcher's interval {interval:g} s; the first push after the start took {warm_up[0]:.2f} s")
    for name, seconds in report.items():
        print(
            f"{name:8} push -> queued: median {statistics.median(seconds):.2f} s, max {max(seconds):.2f} s; "
            f"beyond the interval: median {statistics.median(seconds) - interval:+.2f} s, "
            f"max {max(seconds) - interval:+.2f} s"
        )
    if options.json:
        options.json.write_text(json.dumps({"interval": interval, "first": warm_up, **report}, indent=2) + "\n")


if __name__ == "__main__":
    main()
