"""The supervisor of a job as a child of the agent that attends a node: forked while the agent is still small."""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
from pathlib import Path

from deepseek_ops.adapters.local_launcher import processes
from deepseek_ops.adapters.local_launcher.folder import JobFolder
from deepseek_ops.core.jobs import EXIT_RETRY, JobSpec
from deepseek_ops.jobs.entry import leave
from deepseek_ops.jobs.supervise import GroupRunner, supervisor_of


class SupervisorChild:
    """A forked process that waits for a folder and then supervises the job in it; it dies with the agent.

    It is forked before the agent opens the store: a process with threads must not fork ranks.
    """

    def __init__(self, run_ranks: GroupRunner | None) -> None:
        reading, self._writing = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._writing)
            _be_supervisor(reading, parent, run_ranks)
        os.close(reading)
        self._status: int | None = None

    def begin(self, folder: Path) -> None:
        """Have it supervise the newest attempt in ``folder``."""
        os.write(self._writing, str(folder).encode())
        os.close(self._writing)
        self._writing = -1

    def ended(self) -> bool:
        """Return whether the process has ended; orphans that came to us are taken off the process table."""
        for pid, status in processes.reaped():
            if pid == self.pid:
                self._status = status
        return self._status is not None

    @property
    def ending(self) -> str:
        """How it ended, for people; empty while it runs."""
        if self._status is None:
            return ""
        code = os.waitstatus_to_exitcode(self._status)
        return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it still runs."""
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def close(self) -> None:
        """End it and everything below this process; an unused one goes by itself."""
        if self._writing >= 0:
            os.close(self._writing)
            self._writing = -1
        processes.kill_descendants()


def _be_supervisor(reading: int, parent: int, run_ranks: GroupRunner | None) -> None:
    try:
        os.setsid()  # a signal to the agent's group is a message to the agent
        processes.die_with_parent(parent)
        folder = os.read(reading, 4096).decode()
        os.close(reading)
        if not folder:
            leave(0)
        files = JobFolder(Path(folder))
        _redirect(files)
        spec = files.read("spec.json", JobSpec)
        for name, value in (spec.environment if spec else {}).items():
            os.environ.setdefault(name, value)
        supervisor_of(files, run_ranks=run_ranks).run(lambda: None)
        leave(0)
    except BaseException:  # noqa: BLE001  (it ends in the job's log, and the agent sees the status)
        traceback.print_exc()
    finally:
        leave(EXIT_RETRY)


def _redirect(files: JobFolder) -> None:
    """Point stdin to nothing, stdout and stderr to the job's log."""
    with files.log.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
