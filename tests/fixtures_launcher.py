"""Work for the jobs of the launcher tests: what ``DEEPSEEK_OPS_JOB_KINDS`` points them to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pydantic import JsonValue

from deepseek_ops.core.errors import PermanentError, TransientError
from deepseek_ops.jobs.context import JobContext


def echo(context: JobContext) -> dict[str, JsonValue]:
    """Say what the job sees."""
    print("payload", context.payload, flush=True)
    secret = os.environ.get("TEST_TOKEN", "")
    return {
        "payload": context.payload,
        "attempt": context.attempt,
        "rank": context.rank,
        "world": context.world_size,
        "variable": os.environ.get("TEST_VARIABLE", ""),
        "secret_length": len(secret),
        "airflow": sorted(name for name in os.environ if "AIRFLOW" in name),
        "session": os.getsid(0),
        "folder": str(Path.cwd()),
    }


def fail(context: JobContext) -> dict[str, JsonValue]:
    """Raise what the payload names."""
    errors = {"permanent": PermanentError, "transient": TransientError, "memory": MemoryError, "value": ValueError}
    raise errors[str(context.payload["raise"])]("the learning rate is a fish")


def wait(context: JobContext) -> dict[str, JsonValue]:
    """Work in steps until told to stop, then take some time to save."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    context.event("child", pid=child.pid, own=os.getpid())
    for step in range(6000):
        context.report(step=step, loss=float("nan"))
        if context.stop_requested:
            time.sleep(0.3)
            (context.work / "saved").write_text(f"{step} {context.stop_reason}")
            break
        if (context.work / "go").exists():
            break
        time.sleep(0.05)
    return {"done": True}


def stubborn(context: JobContext) -> dict[str, JsonValue]:
    """Ignore everything."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    subprocess.Popen(
        [sys.executable, "-c", "import signal,time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"],
        start_new_session=True,
    )
    context.event("child", own=os.getpid())
    time.sleep(600)
    return {}


def greedy(context: JobContext) -> dict[str, JsonValue]:
    """Use more memory than allowed."""
    return {"bytes": len(bytearray(1 << 30))}


def silent(context: JobContext) -> dict[str, JsonValue]:
    """End without a word."""
    os._exit(int(str(context.payload["status"])))


def count(context: JobContext) -> dict[str, JsonValue]:
    """Count to ``steps`` on every rank with a file as checkpoint; die once where the payload says so."""
    mark = context.work / f"count-{context.rank}"
    context.event("run", pid=os.getpid(), restarts=context.restarts)
    start = int(mark.read_text()) if mark.exists() else 0
    for step in range(start, int(str(context.payload["steps"]))):
        mark.write_text(str(step + 1))
        if context.stop_requested:
            break
        time.sleep(0.02)
    if context.payload.get("fail_rank") == context.rank:
        raise ValueError("this rank cannot")
    if "fail_rank" in context.payload:
        time.sleep(600)
    return {"rank": context.rank, "started_at": start, "restarts": context.restarts, "seen": os.environ["WORLD_SIZE"]}
