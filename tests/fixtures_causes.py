"""Work of jobs that end for a reason: they are told by their machine, or killed."""

from __future__ import annotations

import os
import signal
import time

from pydantic import JsonValue

from deepseek_ops.jobs.context import JobContext
from deepseek_ops.jobs.spot_notice import SpotWatch


def leaves(context: JobContext) -> dict[str, JsonValue]:
    """Work until the machine of rank 0 says that it will be taken away; the other ranks leave with it."""
    mark = context.work / "leaving"
    with SpotWatch.of(context):
        for step in range(1, 10_000):
            context.report(step=step)
            if context.stop_requested or mark.exists():
                mark.touch()
                break
            time.sleep(0.05)
    return {"step": step}


def killed(context: JobContext) -> dict[str, JsonValue]:
    """End by a SIGKILL that is none of the kernel's."""
    os.kill(os.getpid(), signal.SIGKILL)
    return {"attempt": context.attempt}
