"""From kill -9 of a rank to the next new step on a cluster: our job beside launching a plain script again.

    python benchmarks/engine_restart.py slurm|ray [--repetitions 2]

Starts a real cluster of two nodes on this machine (the one of the tests) and trains the same model on one rank of each
node, with a checkpoint after step 8. Ours is a job of the launcher, and everything after the kill happens by itself.
The other is a DeepSpeed script below torchrun in a job of the engine; after the kill its job is submitted again at
once, so what a person or a requeue takes to notice is not counted. Seconds; prints JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Protocol

import psutil

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT / "tests"))

from fixtures_ray import TOKEN, RayCluster  # noqa: E402
from fixtures_slurm import SlurmCluster, _configure, slurm_software  # noqa: E402
from trainer import Bench, machine  # noqa: E402

from deepseek_ops.adapters.remote_launcher import NodeShape, RemoteLauncher  # noqa: E402
from deepseek_ops.adapters.stores.opening import store_environment  # noqa: E402
from deepseek_ops.core.jobs import JobSpec  # noqa: E402
from deepseek_ops.core.ports import Engine  # noqa: E402

PATIENCE = 150.0
SAVED_AT = 8
PLAIN = "trainer_plain.py"


class Cluster(Protocol):
    """A cluster of two nodes that runs our jobs and plain ones."""

    engine: Engine
    scratch: Path

    def submit(self, command: list[str], environment: dict[str, str]) -> str:
        """Start a plain job that runs the command on both nodes, with ``$NODE`` in it; return its id."""

    def cancel(self, job: str) -> None:
        """End a plain job."""

    def output(self, job: str) -> str:
        """Return what a plain job has printed."""


class Slurm:
    """The Slurm cluster of the tests."""

    def __init__(self, cluster: SlurmCluster, scratch: Path) -> None:
        self.cluster, self.scratch = cluster, scratch
        self.engine = cluster.engine(environment={"DEEPSEEK_OPS_SCRATCH": str(scratch)})

    def submit(self, command: list[str], environment: dict[str, str]) -> str:
        text = " ".join(
            part if part == "$SLURM_PROCID" else shlex.quote(part) for part in _at("$SLURM_PROCID", command)
        )
        script = self.cluster.root / "plain.sh"
        script.write_text(
            f"#!/bin/sh\nexec {self.cluster.bin}/srun --ntasks 2 --ntasks-per-node 1 sh -c {shlex.quote(text)}\n"
        )
        names = "".join(f",{name}={value}" for name, value in environment.items())
        options = ["--parsable", "--nodes=2", "--partition=main", f"--export=ALL{names}", "--cpus-per-task=1"]
        out = str(self.cluster.root / "out" / "plain-%j")
        return self.cluster.command("sbatch", *options, f"--output={out}", str(script)).strip()

    def cancel(self, job: str) -> None:
        self.cluster.command("scancel", "--full", "--signal=KILL", job, check=False)
        self.cluster.command("scancel", job, check=False)

    def output(self, job: str) -> str:
        path = self.cluster.root / "out" / f"plain-{job}"
        return path.read_text() if path.exists() else self.cluster.logs()


class Ray:
    """The Ray cluster of the tests. A plain job there is an entrypoint that starts both nodes' torchrun itself."""

    def __init__(self, cluster: RayCluster) -> None:
        from ray.job_submission import JobSubmissionClient

        self.engine, self.scratch = cluster.engine(), cluster.scratch
        self._client = JobSubmissionClient(cluster.address, headers={"Authorization": f"Bearer {TOKEN}"})

    def submit(self, command: list[str], environment: dict[str, str]) -> str:
        nodes = [" ".join(shlex.quote(part) for part in _at(str(node), command)) for node in (0, 1)]
        return str(
            self._client.submit_job(entrypoint=f"{nodes[0]} & {nodes[1]} & wait", runtime_env={"env_vars": environment})
        )

    def cancel(self, job: str) -> None:
        with suppress(RuntimeError):
            self._client.stop_job(job)

    def output(self, job: str) -> str:
        return str(self._client.get_job_logs(job))


def _at(node: str, command: list[str]) -> list[str]:
    return [node if part == "$NODE" else part for part in command]


def waited(look: Callable[[], float | None], log: Callable[[], str]) -> float:
    """Return what ``look`` returns once that is something."""
    deadline = time.monotonic() + PATIENCE
    while (found := look()) is None:
        if time.monotonic() > deadline:
            raise SystemExit(f"nothing within {PATIENCE:.0f} s:\n{log()}")
        time.sleep(0.05)
    return found


class Restarts:
    """Both ways on one cluster."""

    def __init__(self, bench: Bench, cluster: Cluster) -> None:
        self.bench, self.cluster = bench, cluster
        self.plan = bench.plan.evolve(nproc_per_node=1, num_nodes=2, checkpoint_steps=SAVED_AT)
        access = store_environment(bench.store.uri)
        self.launcher = RemoteLauncher(
            bench.store, cluster.engine, shape=NodeShape(python=sys.executable), access=access
        )

    def ours(self, turn: int) -> float:
        """Return the seconds of our job."""
        name = f"restart-{turn}"
        payload = {"plan": self.plan.evolve(nonce=name).dump(), "alerts": []}
        self.launcher.submit(
            JobSpec(
                name=name, kind="train", payload=payload, num_ranks=1, num_nodes=2, environment={"OMP_NUM_THREADS": "1"}
            )
        )

        def told(after: int, since: float) -> float | None:
            for event in self.launcher.events(name):
                at = datetime.fromisoformat(str(event["time"])).timestamp()
                if event["kind"] == "metric" and int(str(event["step"])) > after and at > since:
                    return at
            return None

        def log() -> str:
            return self.launcher.logs(name)[0][-3000:]

        waited(lambda: told(SAVED_AT, 0.0), log)
        (folder,) = self.cluster.scratch.glob(f"{name}-*-1")
        began = time.time()
        os.kill(json.loads((folder / "ranks.json").read_text())["pids"][0], signal.SIGKILL)
        done = max(int(str(event["step"])) for event in self.launcher.events(name) if event["kind"] == "metric")
        took = waited(lambda: told(done, began), log) - began
        self.launcher.stop(name, reason="measured")
        while not self.launcher.status(name).settled:  # type: ignore[union-attr]
            time.sleep(0.2)
        return took

    def plain(self, turn: int) -> float:
        """Return the seconds of submitting the plain script again."""
        folder = f"plain-restart-{turn}"
        steps = self.bench.root / folder / "steps-0"

        def told(after: int) -> float | None:
            lines = [line.split() for line in steps.read_text().splitlines()] if steps.exists() else []
            return next((float(at) for step, at in lines if int(step) > after), None)

        with self._plain_job(folder, port=29_700 + 2 * turn) as job:
            waited(lambda: told(SAVED_AT), lambda: self.cluster.output(job)[-3000:])
        done = int(steps.read_text().split()[-2])
        began = time.time()
        with self._plain_job(folder, port=29_701 + 2 * turn) as job:
            return waited(lambda: told(done), lambda: self.cluster.output(job)[-3000:]) - began

    @contextmanager
    def _plain_job(self, folder: str, *, port: int) -> Iterator[str]:
        bench = self.bench
        path = bench.root / folder
        path.mkdir(exist_ok=True)
        request = bench.root / f"{folder}.json"
        body = {"plan": self.plan.dump(), "folder": str(path), "dataset": str(bench.data), "save_at": SAVED_AT}
        request.write_text(json.dumps(body))
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1"),
            *("--node_rank", "$NODE", "--master_addr", "127.0.0.1", "--master_port", str(port)),
            *(str(PROJECT / "benchmarks" / PLAIN), str(request)),
        ]
        job = self.cluster.submit(command, {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROJECT)})
        try:
            yield job
        finally:
            self._kill_ranks(str(request))
            self.cluster.cancel(job)

    @staticmethod
    def _kill_ranks(request: str) -> None:
        for process in psutil.process_iter(["cmdline"]):
            if request in (process.info["cmdline"] or []):
                with suppress(psutil.NoSuchProcess):
                    process.kill()


@contextmanager
def started(name: str, scratch: Path) -> Iterator[Cluster]:
    """Give a running cluster."""
    if name == "ray":
        ray = RayCluster()
        try:
            ray.start_head()
            ray.complete()
            yield Ray(ray)
        finally:
            ray.stop()
        return
    software = slurm_software()
    with tempfile.TemporaryDirectory(prefix="slurm-", dir="/tmp") as root:
        slurm = SlurmCluster(Path(root), software)
        _configure(slurm.root, software)
        try:
            slurm.start()
            yield Slurm(slurm, scratch)
        finally:
            slurm.stop()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("engine", choices=("slurm", "ray"))
    parser.add_argument("--repetitions", type=int, default=2)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    size = SimpleNamespace(ranks=2, stage=1, batch=16, length=64, hidden=64, layers=2, precision="fp32",
                           checkpoint_steps=SAVED_AT)  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="engine-restart-") as root:
        (scratch := Path(root, "scratch")).mkdir()
        bench = Bench(Path(root), size)  # type: ignore[arg-type]
        try:
            with started(asked.engine, scratch) as cluster:
                restarts = Restarts(bench, cluster)
                plain = [restarts.plain(turn) for turn in range(asked.repetitions)]
                ours = [restarts.ours(turn) for turn in range(asked.repetitions)]
        finally:
            bench.launcher.shutdown(grace_seconds=5)
    found = {
        "machine": machine(), "engine": asked.engine,
        "ours_seconds": [round(value, 2) for value in ours],
        "relaunch_seconds": [round(value, 2) for value in plain],
        "ours_over_relaunch": round(statistics.median(ours) / statistics.median(plain), 3),
    }  # fmt: skip
    print(json.dumps(found, indent=2))
    if asked.out:
        asked.out.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
