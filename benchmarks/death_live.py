"""Kill parts of a live Airflow while it trains, in every phase, and count what must never happen.

    python benchmarks/death_live.py [--victims triggerer,scheduler,task] [--phases submitting,...] [--json FILE]

Starts S3, a Git server and Airflow. One repetition: a run of ``retrain`` is started by hand with a seed of its own;
when its training is in the phase, the victim gets SIGKILL, with all its processes, and a component is started again a
few seconds later, as a service manager does. Then the task has to succeed: with one job, whose attempts never ran at
the same time, with no step lost or repeated (the job's own proof), and with no process left.

Victims: ``triggerer``, ``scheduler`` (with its executor's workers), ``task`` (the process of the train task) and
``worker`` (the executor's process that supervises it, and the task); between submitting and finishing the task is
deferred and has no process. Phases: submitting, running, checkpointing (a checkpoint was asked for just before),
finishing (the last step is done; for the task: the job has ended and its result is read). ``death_matrix.py`` does the
same to the processes of a job. Prints JSON; exit status 1 when a promise was broken.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeVar

import httpx
import psutil
from pydantic import JsonValue

from deepseek_ops.adapters.local_launcher.processes import process
from deepseek_ops.adapters.stores import open_store
from deepseek_ops.cli.demo_repository import DemoRepository
from deepseek_ops.core.errors import DeepSeekOpsError
from deepseek_ops.core.jobs import JobStatus
from deepseek_ops.embedded.corpus import collect_python_corpus
from deepseek_ops.embedded.stack import BUCKETS, GIT_USER, LAKE_PREFIX, Stack

PROJECT = Path(__file__).resolve().parents[1]
DAG, TASK = "retrain", "train"
VICTIMS = ("triggerer", "scheduler", "task", "worker")
OF_TASK = ("task", "worker")
PHASES = ("submitting", "running", "checkpointing", "finishing")
STEPS = 120
AWAY_SECONDS = 4.0
"""How long a component is away."""
BOUND_SECONDS = 420.0
"""From the kill to the end of the task: a missed heartbeat, the pause before the next try, the rest of the steps."""
T = TypeVar("T")
AIRFLOW = {
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": "30",
    "AIRFLOW__SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT_DETECTION_INTERVAL": "5",
}
PIPELINE = """
name: deepseek-tiny
triggers: [{type: git-push, branches: [nobody], concurrency: parallel}]
jobs: {setup: {requirements: requirements.txt}}
data:
  raw: s3://data-lake/raw/deepseek/
  prepare: deepseek.prepare:prepare_data
  dataset: deepseek-corpus
  split: {train: 0.9, val: 0.05, test: 0.05}
training:
  model: deepseek/model.json
  gpus_per_node: 1
  seed: %d
  hyperparameters:
    - {name: learning_rate, value: 0.004}
    - {name: batch_size, value: 4}
    - {name: sequence_length, value: 64}
    - {name: max_steps, value: %d}
validation: {stages: [{name: quick-check, dataset: small-test-set, timeout: 30m}]}
deployment: {formats: [safetensors], destination: {type: s3, path: "s3://model-registry/deepseek/"}}
"""


@dataclass
class Cell:
    """One repetition."""

    victim: str
    phase: str
    killed: list[int] = field(default_factory=list)
    attempts: int = 0
    tries: int = 0
    """Of the Airflow task."""
    seconds: float = 0.0
    """From the kill to the end of the task."""
    broken: list[str] = field(default_factory=list)


class Live:
    """A running stack and a clone to push from."""

    def __init__(self, stack: Stack, user: DemoRepository, folder: Path, seed: int) -> None:
        self.stack, self.user, self.folder = stack, user, folder
        self.launcher = stack.launcher
        self.random = random.Random(seed)  # noqa: S311  (moments to kill at)
        self.seed = seed % 10_000

    def repeat(self, cell: Cell) -> None:
        """Run one training, kill the victim, and see what becomes of it."""
        known = {status.name for status in self.launcher.list()}
        run = self._trigger()
        self._wait(lambda: self._state(run) in ("running", "queued", "deferred"), 300, "the train task did not begin")
        self._comes_to(cell, run, known)
        cell.killed = self._kill(cell.victim, run)
        killed = time.monotonic()
        try:
            self._wait(lambda: self._state(run) in ("success", "failed"), BOUND_SECONDS, "the task did not end")
        except TimeoutError as error:
            cell.broken.append(str(error))
        cell.seconds = round(time.monotonic() - killed, 1)
        self._check(cell, run, known)
        # What comes after the training is not measured here.
        self.stack.client.patch(f"/dags/{DAG}/dagRuns/{run}", {"state": "failed"})

    def _trigger(self) -> str:
        self.seed += 1
        self.user._git("checkout", "--quiet", "-B", "exp/death", "origin/main")
        (self.folder / "deepseek.yaml").write_text(PIPELINE % (self.seed, STEPS))
        self.user._git("commit", "--quiet", "--all", "--message", f"Seed {self.seed}")
        self.user._git("push", "--quiet", "--force", "origin", "exp/death")
        body: dict[str, JsonValue] = {"logical_date": None, "conf": {"ref": "exp/death"}}
        return str(self.stack.client.post(f"/dags/{DAG}/dagRuns", body)["dag_run_id"])

    def _comes_to(self, cell: Cell, run: str, known: set[str]) -> None:
        """Return when a moment in the phase has come."""
        if cell.phase == "submitting":
            self._wait(lambda: self._state(run) in ("running", "deferred"), 120, "the train task did not run")
            if cell.victim in OF_TASK:
                self._wait(lambda: self._task_of(run), 20, "the train task has no process")
            time.sleep(self.random.uniform(0.0, 2.0))
            return
        job = self._wait(lambda: next(iter(self._jobs(known)), None), 120, "no job was submitted")
        if cell.phase == "finishing":
            if cell.victim in OF_TASK:
                self._wait(lambda: self._status(job).settled, 300, "the job did not end")
                self._wait(lambda: self._task_of(run), 60, "no task came to read the result")
            else:
                self._wait(lambda: (self._status(job).step or 0) >= STEPS, 300, "the last step did not come")
            return
        self._wait(lambda: (self._status(job).step or 0) >= STEPS // 4, 300, "no step came")
        if cell.phase == "checkpointing":
            self.launcher.ask(job, "checkpoint", by="death_live")
            time.sleep(self.random.uniform(0.0, 0.5))
        else:
            time.sleep(self.random.uniform(0.0, 2.0))

    def _kill(self, victim: str, run: str) -> list[int]:
        """SIGKILL the victim with its children, and start a component again; return what was killed."""
        if victim in OF_TASK:
            task = self._task_of(run)
            worker = task.parent() if task is not None else None
            return _killed([one for one in (worker if victim == "worker" else None, task) if one is not None])
        whole = [one for one in self._airflow_processes() if f"airflow {victim}" in " ".join(one.cmdline())]
        (first,) = [one for one in whole if one.ppid() not in {other.pid for other in whole}]
        command, environment, place = first.cmdline(), first.environ(), first.cwd()
        killed = _killed([*first.children(recursive=True), *whole])
        time.sleep(AWAY_SECONDS)
        with (self.stack.root / f"{victim}-again.log").open("ab") as log:
            subprocess.Popen(command, env=environment, cwd=place, stdout=log, stderr=log, start_new_session=True)
        return killed

    def _task_of(self, run: str) -> psutil.Process | None:
        """Return the process of the run's train task, if it has one: its title ends with the id of the try."""
        try:
            ids = [str(one["id"]) for one in self.stack.client.tasks(DAG, run) if one["task_id"] == TASK]
        except httpx.HTTPError:
            return None
        for one in psutil.process_iter():
            try:
                if any(" ".join(one.cmdline()).strip().endswith(f"worker -- {this}") for this in ids):
                    return one
            except psutil.Error:
                continue
        return None

    def _airflow_processes(self) -> list[psutil.Process]:
        home, found = str(self.stack.airflow.home), []
        for one in psutil.process_iter():
            try:
                if one.environ().get("AIRFLOW_HOME") == home and one.cmdline():
                    found.append(one)
            except psutil.Error:
                continue
        return found

    def _check(self, cell: Cell, run: str, known: set[str]) -> None:
        state, jobs = self._state(run), self._jobs(known)
        (task,) = [one for one in self.stack.client.tasks(DAG, run) if one["task_id"] == TASK]
        cell.tries = int(str(task["try_number"]))
        if state != "success":
            cell.broken.append(f"the train task of {run} is {state}")
        if len(jobs) != 1:
            cell.broken.append(f"{len(jobs)} jobs trained one plan: {jobs}")
        for job in jobs:
            status, events = self._status(job), self.launcher.events(job)
            cell.attempts = status.attempt
            started = [event for event in events if event["kind"] == "started" and "pid" in event]
            if len(started) != status.attempt:
                cell.broken.append(f"{len(started)} starts of {status.attempt} attempts")
            if any(_lives(int(str(event["pid"]))) for event in started):
                cell.broken.append("a supervisor outlived its job")
            proofs = [event for event in events if event["kind"] == "resume_proof"]
            if not proofs or not all(proof["exact"] for proof in proofs):
                cell.broken.append(f"no proof of every step once: {proofs}")

    def _jobs(self, known: set[str]) -> list[str]:
        return [one.name for one in self.launcher.list() if one.name not in known and one.name.startswith("train")]

    def _status(self, job: str) -> JobStatus:
        status = self.launcher.status(job)
        if status is None:
            raise RuntimeError(f"the job {job} is gone")
        return status

    def _state(self, run: str) -> str:
        try:
            tasks = self.stack.client.tasks(DAG, run)
        except httpx.HTTPError:
            return ""
        states = [str(one["state"]) for one in tasks if one["task_id"] == TASK]
        return states[0] if states else ""

    def _wait(self, condition: Callable[[], T | None], within: float, otherwise: str) -> T:
        deadline = time.monotonic() + within
        while True:
            try:
                value = condition()
            except DeepSeekOpsError:  # read in the middle of a start
                value = None
            if value:
                return value
            if time.monotonic() > deadline:
                raise TimeoutError(f"{otherwise} within {within:.0f} s")
            time.sleep(0.1)


def _killed(found: list[psutil.Process]) -> list[int]:
    killed = []
    for one in found:
        try:
            one.kill()
            killed.append(one.pid)
        except psutil.Error:
            continue
    return killed


def _lives(pid: int) -> bool:
    found = process(pid)
    return found is not None and not found.zombie


def main() -> int:
    """Start everything, kill, and print what was counted."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--victims", default=",".join(VICTIMS))
    parser.add_argument("--phases", default=",".join(PHASES))
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cells = [Cell(victim, phase) for victim in options.victims.split(",") for phase in options.phases.split(",")]
    cells = [one for one in cells if one.victim not in OF_TASK or one.phase in ("submitting", "finishing")]
    with tempfile.TemporaryDirectory(prefix="death-live-") as name:
        folder = Path(name)
        stack = Stack(folder / "stack", dags=PROJECT / "dags")
        with stack.running():
            live = prepare(stack, folder, options.seed)
            for cell in cells:
                try:
                    live.repeat(cell)
                except (TimeoutError, ValueError, httpx.HTTPError, psutil.Error) as error:
                    cell.broken.append(f"{type(error).__name__}: {error}")
                print(json.dumps(asdict(cell)), file=sys.stderr, flush=True)
            for one in live._airflow_processes():  # the components that were started again are nobody's children
                one.terminate()
    report = json.dumps({"seed": options.seed, "cells": [asdict(cell) for cell in cells]}, indent=1)
    print(report)
    if options.json:
        options.json.write_text(f"{report}\n")
    return 1 if any(cell.broken for cell in cells) else 0


def prepare(stack: Stack, folder: Path, seed: int) -> Live:
    """Start the servers and Airflow, fill lake and repository."""
    stack.start_servers()
    lake = open_store(f"s3://{BUCKETS[1]}/{LAKE_PREFIX.rstrip('/')}", stack.s3.credentials)
    for path in sorted(collect_python_corpus(folder / "corpus")):
        lake.create(path.relative_to(folder / "corpus").as_posix(), path.read_bytes())
    template = PROJECT / "include" / "examples" / "tiny-deepseek"
    clone = folder / "clone"
    user = DemoRepository(stack.git_url, username=GIT_USER, token=stack.git_token, folder=clone, template=template)
    user.prepare()
    stack.start_airflow(AIRFLOW)
    stack.airflow.wait_healthy()
    stack.prepare_airflow(unpause=(DAG,))
    return Live(stack, user, clone, seed)


if __name__ == "__main__":
    sys.exit(main())
