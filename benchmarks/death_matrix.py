"""Kill every kind of process of a training in every phase, again and again, and count what must never happen.

One repetition: a task (a process of its own, as Airflow's) submits a training of two ranks and renews its lease. When
the training is in the phase, after a random moment more, the victim gets SIGKILL. Then the job is submitted again, as
a retry does, until it has succeeded. The ranks prove for themselves that they are alone: each holds a lock that only
one process can hold. The result is a digest over all steps, equal to that of an undisturbed run or the work was lost.

    python benchmarks/death_matrix.py --repetitions 10 --seed 7

Victims: ``task`` (with its process group), ``supervisor``, ``worker`` (forks the ranks), ``rank``, ``host`` (the warm
host that supervisors are forked from), and ``lease``: the task is killed, the training gets stuck in that phase and is
deaf to every polite signal, and nobody submits again, so it has to end by itself. Phases: submitting, running,
checkpointing, finishing. Prints JSON; exit status 1 when a promise was broken.
"""

from __future__ import annotations

import argparse
import collections
import fcntl
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import JsonValue

from deepseek_ops.adapters.local_launcher import LocalLauncher
from deepseek_ops.adapters.local_launcher.folder import JobFolder, RankGroup, Supervisor
from deepseek_ops.adapters.local_launcher.processes import process
from deepseek_ops.core.errors import TransientError
from deepseek_ops.core.jobs import JobPhase, JobSpec, JobStatus
from deepseek_ops.jobs.context import JobContext

VICTIMS = ("task", "supervisor", "worker", "rank", "host", "lease")
PHASES = ("submitting", "running", "checkpointing", "finishing")
RANKS, STEPS, CHECKPOINT_STEPS = 2, 12, 4
LEASE_SECONDS = 3.0
BOUND_SECONDS = LEASE_SECONDS + 60.0
TRIES = 6
"""Submissions of one job before it counts as lost for good."""


@dataclass
class Cell:
    """What was counted for one victim in one phase."""

    victim: str
    phase: str
    repetitions: int = 0
    killed: int = 0
    """The victim was there and was killed."""
    attempts: int = 0
    """Of the jobs, beyond the first."""
    restarts: int = 0
    slowest_seconds: float = 0.0
    """From the kill to a settled job without processes; for ``lease`` without anybody's help."""
    broken: list[str] = field(default_factory=list)


# --- the training -----------------------------------------------------------------------------------------------------


def train(context: JobContext) -> dict[str, JsonValue]:
    """Return a digest over all steps; checkpoints every few of them and holds this rank's lock all the while."""
    alone(context)
    say(context, "running")
    mark = context.work / f"state-{context.rank}"
    step, state = json.loads(mark.read_text()) if mark.exists() else (0, "")
    context.progress(step)
    while step < STEPS:
        state = hashlib.sha256(f"{state}/{step}/{context.rank}".encode()).hexdigest()
        time.sleep(0.04)
        step += 1
        context.progress(step)
        if step % CHECKPOINT_STEPS == 0:
            say(context, "checkpointing")
            part = mark.with_suffix(".part")
            part.write_text(json.dumps([step, state]))
            time.sleep(0.1)
            part.replace(mark)
            say(context, "running")
        if context.stop_requested:
            return {"state": "stopped"}
    say(context, "finishing")
    meet(context)
    time.sleep(0.2)
    return {"state": state}


def alone(context: JobContext) -> None:
    """Take this rank's lock for as long as the process lives; a second holder is put on record."""
    place = Path(os.environ["DEATH_MATRIX_LOCKS"])
    lock = os.open(place / f"{context.spec.name}-{context.rank}.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        (place / f"{context.spec.name}-{context.rank}-{os.getpid()}.twice").touch()
    (place / f"{context.spec.name}-{os.getpid()}.pid").touch()


def say(context: JobContext, phase: str) -> None:
    """Tell the harness what rank 0 is at; get stuck there if the payload says so, on the first attempt."""
    if context.rank == 0:
        (context.work / "phase").write_text(phase)
    if context.payload.get("stuck") == phase and context.attempt == 1:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)


def meet(context: JobContext) -> None:
    """Wait until every rank has done its last step."""
    marks = [context.work / f"state-{rank}" for rank in range(context.world_size)]
    while any(not mark.exists() or json.loads(mark.read_text())[0] < STEPS for mark in marks):
        time.sleep(0.01)


def expected() -> str:
    """Return the digest of an undisturbed run's rank 0."""
    state = ""
    for step in range(STEPS):
        state = hashlib.sha256(f"{state}/{step}/0".encode()).hexdigest()
    return state


# --- the harness ------------------------------------------------------------------------------------------------------


class Matrix:
    """Repetitions below one root folder."""

    def __init__(self, root: Path, seed: int) -> None:
        self.root = root
        self.locks = root / "locks"
        self.locks.mkdir()
        self.launcher = LocalLauncher(root)
        self.random = random.Random(seed)  # noqa: S311  (moments to kill at, repeatable)
        self.count = 0

    def repeat(self, cell: Cell) -> None:
        """Run one training, kill the victim, and see that nothing is lost and nobody is left."""
        stuck: dict[str, JsonValue] = (
            {"stuck": cell.phase.replace("submitting", "running")} if cell.victim == "lease" else {}
        )
        spec = self._spec(stuck)
        cell.repetitions += 1
        task = self._task(spec)
        try:
            if self._comes_to(cell, spec):
                cell.killed += self._kill(cell.victim, spec, task)
            began = time.monotonic()
            if cell.victim == "lease":
                self._expect(lambda: self._is_gone(spec), BOUND_SECONDS, cell, "it outlived its lease by a minute")
                cell.slowest_seconds = max(cell.slowest_seconds, round(time.monotonic() - began, 2))
            self._finish(spec, cell)
            self._expect(lambda: not self._living(spec), 60.0, cell, "processes outlived the job")
            if cell.victim != "lease":
                cell.slowest_seconds = max(cell.slowest_seconds, round(time.monotonic() - began, 2))
        finally:
            self._end(task)
        self._check(spec, cell)
        if not cell.broken:
            self.launcher.retire(spec.name)

    def _spec(self, payload: dict[str, JsonValue]) -> JobSpec:
        self.count += 1
        environment = {
            "DEEPSEEK_OPS_JOB_KINDS": "train=death_matrix:train",
            "DEEPSEEK_OPS_PRELOAD": "",
            "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent.resolve()), os.environ.get("PYTHONPATH", "")]),
            "DEATH_MATRIX_LOCKS": str(self.locks),
        }
        return JobSpec(
            name=f"job-{self.count}",
            kind="train",
            payload=payload,
            num_ranks=RANKS,
            lease_seconds=LEASE_SECONDS,
            grace_seconds=1.0,
            environment=environment,
        )

    def _task(self, spec: JobSpec) -> subprocess.Popen[bytes]:
        command = [sys.executable, __file__, "--submit", str(self.root), json.dumps(spec.dump())]
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, process_group=0)

    def _comes_to(self, cell: Cell, spec: JobSpec) -> bool:
        """Return whether a random moment in the phase has come before the job has ended."""
        files = self._files(spec)
        if not self._soon(lambda: self._is_in(cell.phase, files), spec):
            return False
        if cell.phase != "submitting":
            time.sleep(self.random.uniform(0.0, 0.3))
            return True
        if cell.victim in ("task", "lease"):
            time.sleep(self.random.uniform(0.0, 0.6))
            return True
        there = self._soon(lambda: self._pid_of(cell.victim, files) is not None, spec)
        time.sleep(self.random.uniform(0.0, 0.05))
        return there

    def _is_in(self, phase: str, files: JobFolder) -> bool:
        at = files.work / "phase"
        return (files.path / "lock").exists() if phase == "submitting" else at.exists() and at.read_text() == phase

    def _soon(self, condition: Callable[[], bool], spec: JobSpec) -> bool:
        deadline = time.monotonic() + 60
        while not condition():
            status = self.launcher.status(spec.name)
            if time.monotonic() > deadline or (status is not None and status.settled):
                return False
            time.sleep(0.003)
        return True

    def _kill(self, victim: str, spec: JobSpec, task: subprocess.Popen[bytes]) -> bool:
        """Kill the victim if it is there; return whether it was."""
        if victim in ("task", "lease"):
            os.killpg(task.pid, signal.SIGKILL)
            return True
        pid = self._pid_of(victim, self._files(spec))
        if pid is None or (found := process(pid)) is None or found.zombie:
            return False
        os.kill(pid, signal.SIGKILL)
        return True

    def _pid_of(self, victim: str, files: JobFolder) -> int | None:
        if victim == "host":
            hosts = [json.loads(path.read_text()) for path in self.root.glob("host/*/host.json")]
            return int(self.random.choice(hosts)["pid"]) if hosts else None
        if victim == "supervisor":
            supervisor = files.read("supervisor.json", Supervisor)
            return supervisor.pid if supervisor is not None else None
        group = files.read("ranks.json", RankGroup)
        if group is None:
            return None
        rank = process(self.random.choice(group.pids))
        return None if rank is None else rank.pid if victim == "rank" else rank.parent

    def _finish(self, spec: JobSpec, cell: Cell) -> None:
        """Submit again until the job has succeeded, as retries do."""
        for _ in range(TRIES):
            self._submit(spec)
            status = self._settled(spec)
            if status.phase is JobPhase.SUCCEEDED:
                cell.attempts += status.attempt - 1
                cell.restarts += status.restarts
                return
            if status.phase is JobPhase.FAILED:
                break
        cell.broken.append(f"{spec.name} is {status.phase}: {status.reason}")

    def _settled(self, spec: JobSpec) -> JobStatus:
        while (status := self.launcher.status(spec.name)) is None or not status.settled:
            if status is not None:
                self.launcher.renew(spec.name)
            time.sleep(0.02)
        return status

    def _is_gone(self, spec: JobSpec) -> bool:
        status = self.launcher.status(spec.name)
        return (status is None or status.settled) and not self._living(spec)

    def _submit(self, spec: JobSpec) -> None:
        try:
            self.launcher.submit(spec)
        except TransientError:
            time.sleep(0.1)

    def _check(self, spec: JobSpec, cell: Cell) -> None:
        if list(self.locks.glob(f"{spec.name}-*.twice")):
            cell.broken.append(f"two attempts of {spec.name} ran at a time")
        state = self.launcher.result(spec.name).get("state") if not cell.broken else expected()
        if state != expected():
            cell.broken.append(f"{spec.name} has another result than an undisturbed run")

    def _living(self, spec: JobSpec) -> list[int]:
        """Return the processes of the job that run: ranks that ever ran, and its supervisors."""
        told = [int(path.stem.rpartition("-")[2]) for path in self.locks.glob(f"{spec.name}-*.pid")]
        told += [int(str(event["pid"])) for event in self.launcher.events(spec.name) if event["kind"] == "started"]
        return [pid for pid in told if (found := process(pid)) is not None and not found.zombie]

    def _expect(self, condition: Callable[[], bool], within: float, cell: Cell, otherwise: str) -> None:
        deadline = time.monotonic() + within
        while not condition():
            if time.monotonic() > deadline:
                cell.broken.append(otherwise)
                return
            time.sleep(0.02)

    def _end(self, task: subprocess.Popen[bytes]) -> None:
        if task.poll() is None:
            os.killpg(task.pid, signal.SIGKILL)
        task.wait()

    def _files(self, spec: JobSpec) -> JobFolder:
        return JobFolder(self.root / "jobs" / spec.name)


def submit(root: Path, spec: JobSpec) -> None:
    """Be the task: submit the job and renew its lease until it has ended."""
    launcher = LocalLauncher(root)
    launcher.submit(spec)
    while (status := launcher.status(spec.name)) is not None and not status.settled:
        launcher.renew(spec.name)
        time.sleep(0.5)


def measure(victims: list[str], phases: list[str], repetitions: int, seed: int) -> tuple[dict[str, object], list[Cell]]:
    """Return the totals and the cells: every victim in every phase so many times, in an order the seed gives."""
    root = Path(tempfile.mkdtemp(prefix="death-matrix-"))
    matrix = Matrix(root, seed)
    cells = [Cell(victim, phase) for victim in victims for phase in phases]
    order = [cell for cell in cells for _ in range(repetitions)]
    matrix.random.shuffle(order)
    began = time.monotonic()
    try:
        for cell in order:
            matrix.repeat(cell)
    finally:
        matrix.launcher.shutdown("the matrix is over", grace_seconds=2)
        if not any(cell.broken for cell in cells):
            shutil.rmtree(root)
    totals = collections.Counter(
        {name: sum(getattr(cell, name) for cell in cells) for name in ("repetitions", "killed", "attempts", "restarts")}
    )
    broken = [f"{cell.victim}/{cell.phase}: {problem}" for cell in cells for problem in cell.broken]
    return {"seed": seed, "seconds": round(time.monotonic() - began, 1), **totals, "broken": broken}, cells


def main() -> int:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--repetitions", type=int, default=5, help="of every victim in every phase")
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--victims", default=",".join(VICTIMS))
    parser.add_argument("--phases", default=",".join(PHASES))
    parser.add_argument("--submit", nargs=2, metavar=("ROOT", "SPEC"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.submit:
        submit(Path(options.submit[0]), JobSpec.load(json.loads(options.submit[1])))
        return 0
    print(f"seed {options.seed}", file=sys.stderr, flush=True)
    report, cells = measure(options.victims.split(","), options.phases.split(","), options.repetitions, options.seed)
    lines = ",\n  ".join(json.dumps(asdict(cell)) for cell in cells)
    print(json.dumps(report, indent=1)[:-2] + f',\n "cells": [\n  {lines}\n ]\n}}')
    return 1 if report["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
