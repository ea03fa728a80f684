"""Time from the SIGKILL of a rank to the first step of all ranks after it: our rank group beside torchrun's agent.

Both run the same function in two gloo ranks, through the same door (``jobs`` ``train``): ours forked below a supervisor
from a warm host, torchrun's started by its elastic agent, which starts a new interpreter for every rank and restart.
``--imports`` names what a rank imports before its first step: ``torch`` alone, or what a real trainer imports too.

    python benchmarks/rank_restart.py --repetitions 3 --imports torch,transformers,deepspeed

torchrun gets ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1``. Without it torch 2.13 keeps one store over all restarts, new
gloo ranks read the addresses of the dead ones there ("Connection refused") and only the third restart or so succeeds;
``--shared-store`` measures that. Prints JSON: the seconds of each repetition.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import JsonValue

from deepseek_ops.adapters.local_launcher import LocalLauncher
from deepseek_ops.adapters.local_launcher.folder import JobFolder
from deepseek_ops.adapters.local_launcher.reading import read_events
from deepseek_ops.core.jobs import JobSpec
from deepseek_ops.jobs.context import JobContext

PATIENCE_SECONDS = 300.0
RANKS = 2


def train(context: JobContext) -> dict[str, JsonValue]:
    """Sum over the ranks until told to stop; rank 0 says when each start took its first step."""
    for name in str(context.payload["imports"]).split(","):
        importlib.import_module(name)
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    context.event("rank", pid=os.getpid(), restarts=context.restarts)
    step = 0
    while True:
        asked = torch.tensor([float(context.stop_requested)])
        dist.all_reduce(asked)
        step += 1
        context.progress(step)
        if step == 1 and context.rank == 0:
            context.event("first_step", restarts=context.restarts, at=time.time())
        if asked.item():
            break
        time.sleep(0.02)
    dist.destroy_process_group()
    return {"steps": step}


def spec_of(imports: str, name: str) -> JobSpec:
    """Return the job that both run."""
    environment = {
        "DEEPSEEK_OPS_JOB_KINDS": "train=rank_restart:train",
        "DEEPSEEK_OPS_PRELOAD": imports,
        "PYTHONPATH": str(Path(__file__).parent.resolve()),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
    }
    return JobSpec(
        name=name,
        kind="train",
        payload={"imports": imports},
        num_ranks=RANKS,
        max_restarts=100,
        environment=environment,
    )


def restart_seconds(files: JobFolder, repetitions: int) -> list[float]:
    """Return the seconds of each restart; kills the newest rank 1 so many times."""
    found = []
    for number in range(repetitions):
        wait_for_steps(files, number + 1)
        time.sleep(0.5)
        victim = [event for event in events(files, "rank") if event["rank"] == 1][-1]
        killed_at = time.time()
        os.kill(int(str(victim["pid"])), signal.SIGKILL)
        found.append(wait_for_steps(files, number + 2) - killed_at)
    return found


def wait_for_steps(files: JobFolder, starts: int) -> float:
    """Return when the newest start took its first step, once so many have."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while len(steps := events(files, "first_step")) < starts:
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {PATIENCE_SECONDS:g} s")
        time.sleep(0.01)
    return float(str(steps[-1]["at"]))


def events(files: JobFolder, kind: str) -> list[dict[str, JsonValue]]:
    """Return the job's events of a kind."""
    return [event for event in read_events(files, 0) if event["kind"] == kind]


def ours(root: Path, imports: str, repetitions: int) -> list[float]:
    """Return the restart times of the rank group."""
    launcher, spec = LocalLauncher(root / "ours"), spec_of(imports, "ours")
    try:
        launcher.submit(spec)
        return restart_seconds(JobFolder(root / "ours" / "jobs" / spec.name), repetitions)
    finally:
        launcher.shutdown("measured", grace_seconds=20)


def torchruns(root: Path, imports: str, repetitions: int, *, shared_store: bool = False) -> list[float]:
    """Return the restart times of torchrun's agent."""
    spec, folder = spec_of(imports, "torchrun"), root / "torchrun"
    folder.mkdir()
    (root / "plan.json").write_text(json.dumps(spec.dump()))
    agent = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    job = ["--max-restarts=100", "-m", "deepseek_ops.jobs", "train", str(root / "plan.json"), "--folder", str(folder)]
    with (root / "torchrun.log").open("wb") as log:
        own = {} if shared_store else {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        environment = {**os.environ, **spec.environment, **own}
        process = subprocess.Popen([*agent, *job], stdout=log, stderr=log, env=environment)
    try:
        return restart_seconds(JobFolder(folder), repetitions)
    finally:
        process.terminate()
        process.wait(60)


def measure(run: Callable[[Path, str, int], list[float]], imports: str, repetitions: int) -> dict[str, object]:
    """Return one side's figures."""
    with tempfile.TemporaryDirectory(prefix="rank-restart-") as root:
        seconds = run(Path(root), imports, repetitions)
    return {"seconds": [round(each, 2) for each in seconds], "median": round(statistics.median(seconds), 2)}


def main() -> None:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--imports", default="torch")
    parser.add_argument("--shared-store", action="store_true", help="torchrun as it comes")
    options = parser.parse_args()
    agent = functools.partial(torchruns, shared_store=options.shared_store)
    report = {
        "imports": options.imports,
        "load": round(os.getloadavg()[0], 1),
        "rank_group": measure(ours, options.imports, options.repetitions),
        "torchrun": measure(agent, options.imports, options.repetitions),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
