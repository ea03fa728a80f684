"""An engine whose machines are processes of this one, with the faults that real engines have.

Every job is ``num_nodes`` processes on loopback, each with its own place and its own scratch. What is here is what an
engine promises (``core.ports.Engine``) and no more: it knows nothing of stores, attempts and results.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from deepseek_ops.core.errors import TransientError
from deepseek_ops.core.jobs import EngineJob, EnginePhase, EngineState
from deepseek_ops.jobs.nodes import ADDRESS_VARIABLE, COUNT_VARIABLE, INSTANCE_VARIABLE, RANK_VARIABLE

MIRROR_SECONDS = "0.1"


class EngineAwayError(TransientError):
    """The engine does not answer."""


@dataclass
class Run:
    """One job of the engine: its processes, by node, and what people did to it."""

    job: EngineJob
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    pending: bool = False
    cancelled: bool = False
    preempted: bool = False

    @property
    def over(self) -> bool:
        return not self.pending and all(process.poll() is not None for process in self.processes)


class ProcessEngine:
    """Runs jobs as processes below ``root``, for as long as this one lives."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs: dict[str, Run] = {}
        self.hold = False
        """Whether jobs stay in the queue."""
        self.lose_answer = False
        """Whether the next start succeeds and says that it has not."""
        self.before_start: Callable[[], None] | None = None
        """Called once, when the next start is asked for and has not happened."""
        self.forgotten: list[Run] = []
        self.started: list[str] = []
        """Ids of the jobs that were really started, one entry each time."""
        self._secrets: dict[str, Mapping[str, str]] = {}
        self._lock = threading.Lock()

    def start(self, job: EngineJob, *, secrets: Mapping[str, str] | None = None) -> EngineState:
        """Start the job if none of its id is known."""
        before, self.before_start = self.before_start, None
        if before is not None:
            before()
        with self._lock:
            if job.id not in self.runs:
                self._secrets[job.id] = dict(secrets or {})
                run = Run(job, pending=self.hold)
                if not self.hold:
                    self._begin(run)
                self.runs[job.id] = run  # known from now on: one without processes would be taken for ended
        if self.lose_answer:
            self.lose_answer = False
            raise EngineAwayError("the answer was lost")
        state = self.state(job.id)
        assert state is not None
        return state

    def release(self) -> None:
        """Give the jobs in the queue their machines."""
        with self._lock:
            self.hold = False
            for run in self.runs.values():
                if run.pending and not run.cancelled:
                    self._begin(run)
                    run.pending = False

    def again(self, name: str) -> None:
        """Start the processes of an ended job once more, as an engine does that requeues by itself."""
        with self._lock:
            self._begin(self.runs[name], instance="again")

    def state(self, name: str) -> EngineState | None:
        """Return the job's state."""
        run = self.runs.get(name)
        if run is None:
            return None
        if run.cancelled and (run.pending or run.over):
            phase = EnginePhase.CANCELLED
        elif run.pending:
            phase = EnginePhase.PENDING
        elif run.over:
            phase = EnginePhase.PREEMPTED if run.preempted else EnginePhase.ENDED
        else:
            phase = EnginePhase.RUNNING
        statuses = [process.returncode for process in run.processes]
        worst = max((status for status in statuses if status is not None), key=abs, default=None)
        over = phase not in (EnginePhase.PENDING, EnginePhase.RUNNING)
        status, page = worst if over else None, f"http://engine.example/{name}"
        return EngineState(id=name, phase=phase, handle=f"process-{name}", exit_status=status, url=page)

    def cancel(self, name: str, *, grace_seconds: float) -> None:
        """Send SIGTERM, and SIGKILL after the grace."""
        run = self.runs.get(name)
        if run is None or self.state(name).settled:  # type: ignore[union-attr]
            return
        run.cancelled = True
        self._end(run, grace_seconds)

    def preempt(self, name: str, *, grace_seconds: float) -> None:
        """Take the job's machines away, with a notice."""
        self.runs[name].preempted = True
        self._end(self.runs[name], grace_seconds)

    def kill(self, name: str, node: int) -> None:
        """Switch a machine off."""
        _kill_tree(self.runs[name].processes[node].pid)

    def forget(self, name: str) -> Run:
        """Lose the record of a job, as an engine does that was started anew; its processes go on."""
        self.forgotten.append(self.runs.pop(name))
        return self.forgotten[-1]

    def retire(self, name: str) -> None:
        """Forget a settled job."""
        state = self.state(name)
        if state is not None and state.settled:
            self.runs.pop(name)

    def tail(self, name: str) -> str:
        """Return the last output of the job's first machine."""
        path = self.root / f"{name}-0.out"
        return path.read_text(errors="replace")[-4000:] if path.exists() else ""

    def list(self) -> list[EngineState]:
        """Return every job."""
        return [state for name in list(self.runs) if (state := self.state(name)) is not None]

    def close(self) -> None:
        """End every process."""
        for run in [*self.runs.values(), *self.forgotten]:
            for process in run.processes:
                if process.poll() is None:
                    _kill_tree(process.pid)
                process.wait()

    def _begin(self, run: Run, instance: str = "first") -> None:
        self.started.append(run.job.id)
        run.processes = [self._process(run.job, node, instance) for node in range(run.job.num_nodes)]

    def _process(self, job: EngineJob, node: int, instance: str) -> subprocess.Popen[bytes]:
        scratch = self.root / f"machine-{node}"
        scratch.mkdir(parents=True, exist_ok=True)
        place = {
            RANK_VARIABLE: str(node),
            COUNT_VARIABLE: str(job.num_nodes),
            ADDRESS_VARIABLE: "127.0.0.1",
            INSTANCE_VARIABLE: instance,
            "DEEPSEEK_OPS_SCRATCH": str(scratch),
            "DEEPSEEK_OPS_MIRROR_SECONDS": MIRROR_SECONDS,
        }
        with (self.root / f"{job.id}-{node}.out").open("ab") as out:
            return subprocess.Popen(
                job.command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env={**os.environ, **job.environment, **self._secrets[job.id], **place},
                start_new_session=True,
            )

    def _end(self, run: Run, grace_seconds: float) -> None:
        def kill() -> None:
            deadline = time.monotonic() + grace_seconds + 5
            while time.monotonic() < deadline and not run.over:
                time.sleep(0.05)
            for process in run.processes:
                if process.poll() is None:
                    _kill_tree(process.pid)

        for process in run.processes:
            process.terminate()  # not one that has been waited for, by another thread perhaps
        threading.Thread(target=kill, daemon=True).start()


def _kill_tree(pid: int) -> None:
    """SIGKILL one process: what it has forked must die with it, by its own care."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
