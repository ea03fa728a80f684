"""Jobs for the launcher's tests: ``job`` makes one whose work is a function of this module."""

from __future__ import annotations

import ctypes
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

from pydantic import JsonValue

from deepseek_ops.adapters.local_launcher.folder import JobFolder
from deepseek_ops.adapters.local_launcher.processes import process
from deepseek_ops.adapters.local_launcher.reading import read_events
from deepseek_ops.core.errors import JobStoppedError, PermanentError, TransientError
from deepseek_ops.core.jobs import JobSpec, JobStatus
from deepseek_ops.core.ports import Launcher
from deepseek_ops.jobs.context import JobContext

T = TypeVar("T")
_NUMBERS = itertools.count()


def job(
    work: str,
    payload: Mapping[str, JsonValue] | None = None,
    *,
    kind: str = "evaluate",
    environment: Mapping[str, str] | None = None,
    **fields: object,
) -> JobSpec:
    """Return a job with a name of its own, the work of function ``work`` of this module, and no heavy imports."""
    surroundings = {
        "DEEPSEEK_OPS_JOB_KINDS": f"{kind}=fixtures_launcher:{work}",
        "DEEPSEEK_OPS_PRELOAD": "",
        "PYTHONPATH": str(Path(__file__).parent),
        **(environment or {}),
    }
    body = {"name": f"{work}-{next(_NUMBERS)}", "kind": kind, "payload": dict(payload or {}), **fields}
    return JobSpec.model_validate({**body, "environment": surroundings})


def until(condition: Callable[[], T], *, within: float = 60.0) -> T:
    """Return the first true value of ``condition``."""
    deadline = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return value


def settled(launcher: Launcher, name: str, *, within: float = 60.0) -> JobStatus:
    """Return the job's status once it has ended."""
    deadline = time.monotonic() + within
    while True:
        status = launcher.status(name)
        if status is not None and status.settled:
            return status
        assert time.monotonic() < deadline, f"{status} after {within} s; log:\n{launcher.logs(name)[0]}"
        time.sleep(0.02)


# --- work -------------------------------------------------------------------------------------------------------------


def echo(context: JobContext) -> dict[str, JsonValue]:
    """Say what the job sees."""
    return {
        "payload": context.payload,
        "attempt": context.attempt,
        "variable": os.environ.get("TEST_VARIABLE", ""),
        "secret_length": len(os.environ.get("TEST_TOKEN", "")),
        "airflow": sorted(name for name in os.environ if "AIRFLOW" in name),
        "session": os.getsid(0),
        "folder": str(Path.cwd()),
        "modules": [name for name in ("torch", "json") if name in sys.modules],
        "files": sorted(str(path.resolve()) for path in Path("/proc/self/fd").iterdir() if path.exists()),
    }


def fail(context: JobContext) -> dict[str, JsonValue]:
    """Raise what the payload names."""
    errors = {"permanent": PermanentError, "transient": TransientError, "memory": MemoryError, "value": ValueError}
    raise errors[str(context.payload["raise"])]("the learning rate is a fish")


def silent(context: JobContext) -> dict[str, JsonValue]:
    """End without a word."""
    os._exit(int(str(context.payload["status"])))


def second_time_lucky(context: JobContext) -> dict[str, JsonValue]:
    """Be killed on the first attempt, and find on the second what the first left."""
    mark = context.work / "mark"
    if not mark.exists():
        mark.write_text(f"left by {context.attempt}")
        os.kill(os.getpid(), signal.SIGKILL)
    return {"attempt": context.attempt, "found": mark.read_text()}


def wait(context: JobContext) -> dict[str, JsonValue]:
    """Work in steps, with a child process, until told to stop; then take some time to save."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    context.event("processes", pids=[os.getpid(), child.pid])
    for step in itertools.count(1):
        context.report(step=step)
        if context.stop_requested:
            time.sleep(0.3)
            context.event("saved", reason=context.stop_reason)
            break
        time.sleep(0.05)
    return {}


def obey(context: JobContext) -> dict[str, JsonValue]:
    """Do what people ask for, each thing once and in order, until they ask to go back."""
    done: list[dict[str, JsonValue]] = []
    context.report(step=0)
    while not done or done[-1]["verb"] != "rewind":
        after = int(str(done[-1]["number"])) if done else 0
        done += [{"number": r.number, "verb": r.verb, "step": r.step, "by": r.by} for r in context.requests(after)]
        time.sleep(0.02)
    return {"done": list(done)}


def answer(context: JobContext) -> dict[str, JsonValue]:
    """Answer requests as trainings do: done, done, not possible in our trainer, not possible in a script; then end."""
    answers: list[tuple[str, dict[str, object]]] = [
        ("guardian", {"done": True, "went_to": None}),
        ("guardian", {"done": True, "went_to": 3}),
        ("guardian", {"done": False, "why_not": "no healthy checkpoint of step 1 or before"}),
        ("request_not_possible", {}),
    ]
    context.report(step=10)
    number = 0
    while number <= len(answers):
        for request in context.requests(number):
            number = request.number
            if number <= len(answers):
                kind, fields = answers[number - 1]
                named = {"request": number} if kind == "guardian" else {"number": number}
                context.event(kind, step=10, action=request.verb, **named, **fields)
                if request.verb == "checkpoint":
                    context.event("checkpoint", step=10, reason="request")
        time.sleep(0.02)
    return {}


def deaf(context: JobContext) -> dict[str, JsonValue]:
    """Finish without ever asking whether to stop."""
    context.report(step=1)
    time.sleep(1.5)
    return {}


def stubborn(context: JobContext) -> dict[str, JsonValue]:
    """Ignore every polite signal, with a child that left the session and does the same."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    script = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    child = subprocess.Popen([sys.executable, "-c", script], start_new_session=True, stdout=subprocess.PIPE)
    assert child.stdout is not None
    child.stdout.readline()
    context.event("ready", pids=[os.getpid(), child.pid])
    time.sleep(600)
    return {}


def rule(context: JobContext) -> dict[str, JsonValue]:
    """End on purpose, as a guardian does."""
    raise JobStoppedError(context.spec.name, "loss was NaN for 3 steps")


def fill(context: JobContext) -> dict[str, JsonValue]:
    """Write until the disk is full."""
    with (context.work / "filling").open("wb", buffering=0) as file:
        while True:
            file.write(b"." * 65536)


def breed(context: JobContext) -> dict[str, JsonValue]:
    """Start a program on every rank and have rank 1 killed once."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    context.event("bred", pid=child.pid, restarts=context.restarts)
    if context.restarts == 0:
        time.sleep(0.5)
        if context.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)
    bred = [event for event in read_events(JobFolder(context.folder), 0) if event["kind"] == "bred"]
    old = [int(str(event["pid"])) for event in bred if event["restarts"] == 0]
    return {"old": len(old), "living": [pid for pid in old if (p := process(pid)) is not None and not p.zombie]}


def greedy(context: JobContext) -> dict[str, JsonValue]:
    """Ask for more memory than the job may have."""
    return {"bytes": len(bytearray(int(str(context.payload["bytes"]))))}


def chatty(context: JobContext) -> dict[str, JsonValue]:
    """Print lines whose characters are longer than a byte, and report steps."""
    for number in range(500):
        print(f"zeile {number} äöü€")
    for step in range(20):
        context.report(step=step, loss=float("nan"))
    return {}


def count(context: JobContext) -> dict[str, JsonValue]:
    """Count to ``steps`` on every rank with a file as checkpoint, and fail or die where the payload says so."""
    mark = context.work / f"count-{context.rank}"
    start = int(mark.read_text()) if mark.exists() else 0
    context.event("run", pid=os.getpid(), started_at=start)
    for step in range(start, int(str(context.payload["steps"]))):
        part = mark.with_suffix(".part")
        part.write_text(str(step + 1))
        part.replace(mark)
        if context.stop_requested:
            context.event("stopped")
            break
        time.sleep(0.02)
    if context.payload.get("fail_rank") == context.rank:
        raise ValueError("this rank cannot")
    if context.payload.get("die_rank") == context.rank:
        os.kill(os.getpid(), signal.SIGKILL)
    if {"fail_rank", "die_rank"} & context.payload.keys():
        time.sleep(600)  # as a rank does that waits for a peer in a collective
    return {"rank": context.rank, "started_at": start, "restarts": context.restarts, "world": os.environ["WORLD_SIZE"]}


def march(context: JobContext) -> dict[str, JsonValue]:
    """Count on every rank, none a step ahead of the others, and get stuck, fall behind or rest as the payload says."""
    order = context.payload
    context.progress(0, "starting")
    mark = place_of_marks(context) / f"march-{context.rank}"
    start = int(mark.read_text()) if mark.exists() else 0
    context.event("run", pid=os.getpid(), started_at=start, world=context.world_size, variables=torchrun_variables())
    context.progress(start)
    for step in range(start, int(str(order["steps"]))):
        began = time.monotonic()
        if order.get("stuck_rank") == context.rank and step == order["stuck_at"] and not context.restarts:
            get_stuck(str(order.get("how", "asleep")))
        if order.get("fail_rank") == context.rank and step == order["fail_at"]:
            raise ValueError("this rank cannot")
        time.sleep(0.03 if order.get("slow_rank") == context.rank else 0.01)
        busy = time.monotonic() - began
        part = mark.with_suffix(".part")
        part.write_text(str(step + 1))
        part.replace(mark)
        wait_for_peers(context, step + 1)
        if step == order.get("rest_at"):
            context.progress(step + 1, "checkpointing")
            time.sleep(float(str(order["rest_seconds"])))
        context.progress(step + 1, busy_seconds=busy)
        if context.stop_requested:
            break
    return {"rank": context.rank, "started_at": start, "restarts": context.restarts}


def place_of_marks(context: JobContext) -> Path:
    """Return the folder of the ranks' counts: the job's own, or one that several nodes share."""
    return Path(str(context.payload.get("marks", context.work)))


def torchrun_variables() -> dict[str, str]:
    """Return what this process has of torchrun's variables."""
    names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    return {name: os.environ[name] for name in names if name in os.environ}


def get_stuck(how: str) -> None:
    """Never come back; ``deaf`` with every signal blocked and the interpreter's lock held."""
    if how == "deaf":
        signal.pthread_sigmask(signal.SIG_BLOCK, set(signal.Signals) - {signal.SIGKILL})
        ctypes.PyDLL(None).sleep(600)
    time.sleep(600)


def wait_for_peers(context: JobContext, step: int) -> None:
    """Wait, as a collective does, until every rank has come as far."""
    marks = [place_of_marks(context) / f"march-{rank}" for rank in range(context.world_size)]
    while any(int(mark.read_text() if mark.exists() else 0) < step for mark in marks):
        time.sleep(0.005)


def all_reduce(context: JobContext) -> dict[str, JsonValue]:
    """Sum over the ranks with gloo, step by step, and say what this process looked like before it began."""
    context.event("run", pid=os.getpid(), threads=len(list(Path("/proc/self/task").iterdir())),
                  modules=[name for name in ("torch", "deepspeed") if name in sys.modules])  # fmt: skip
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")
    mark = context.work / "step"
    start = int(mark.read_text()) if mark.exists() else 0
    total = torch.zeros(1)
    for step in range(start, int(str(context.payload["steps"]))):
        total = torch.ones(1)
        dist.all_reduce(total)
        if context.rank == 0:
            part = mark.with_suffix(".part")
            part.write_text(str(step + 1))
            part.replace(mark)
        dist.barrier()
        time.sleep(0.05)
    dist.destroy_process_group()
    return {"sum": total.item(), "started_at": start, "restarts": context.restarts}
