"""Runs one command for a process that may be killed at any time: the command and all it started end with it.

``python -m deepseek_ops.jobs.ray_guard GRACE_SECONDS -- COMMAND...`` with a pipe as standard input. When the pipe
closes, its holder is gone (Ray kills a worker without a word when its group is made anew), and everything below is
killed at once, because a successor may begin on another node. On SIGTERM the command gets SIGTERM, and after the
grace everything is killed. The exit status is the command's, 128 + n when signal n ended it, 127 when it cannot start.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Sequence

from deepseek_ops.adapters.local_launcher import processes

EXIT_NOT_FOUND = 127


def main(arguments: Sequence[str]) -> int:
    """Return the exit status."""
    grace, command = float(arguments[0]), list(arguments[2:])
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # Ray blocks some in its workers, and children inherit that
    waking, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.set_wakeup_fd(woken, warn_on_full_buffer=False)
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGCHLD):
        signal.signal(number, lambda arrived, _frame: told.append(arrived))
    processes.become_subreaper()
    try:
        child = start(command)
    except OSError as error:
        print(f"{command[0]} cannot be started: {error.strerror}", file=sys.stderr, flush=True)  # noqa: T201
        return EXIT_NOT_FOUND
    try:
        return watch(child, grace, waking, told)
    finally:
        processes.kill_descendants()


def start(command: Sequence[str]) -> int:
    """Start the command in a session of its own and return its process id. Raises OSError when it cannot be run."""
    reading, writing = os.pipe()  # closed by a successful exec; else it carries the reason
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            processes.die_with_parent(parent)
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.execvp(command[0], list(command))  # noqa: S606  (no shell is what we want)
        except OSError as error:
            os.write(writing, str(error.errno).encode())
        finally:
            os._exit(EXIT_NOT_FOUND)
    os.close(writing)
    with os.fdopen(reading, "rb") as said:
        number = said.read()
    if number:
        os.waitpid(child, 0)
        raise OSError(int(number), os.strerror(int(number)))
    return child


def watch(child: int, grace: float, waking: int, told: list[int]) -> int:
    """Return how the command ended, by itself or by our hand."""
    kill_at: float | None = None
    while True:
        ended = dict(processes.reaped()).get(child)
        if ended is not None:
            code = os.waitstatus_to_exitcode(ended)
            return code if code >= 0 else 128 - code
        if signal.SIGTERM in told and kill_at is None:
            kill_at = time.monotonic() + grace
            os.kill(child, signal.SIGTERM)
        remaining = None if kill_at is None else max(0.0, kill_at - time.monotonic())
        ready, _, _ = select.select([sys.stdin.fileno(), waking], [], [], remaining)
        if waking in ready:
            os.read(waking, 4096)
        holder_gone = sys.stdin.fileno() in ready and not os.read(sys.stdin.fileno(), 4096)
        if holder_gone or (kill_at is not None and time.monotonic() >= kill_at):
            processes.kill_descendants()
            return 128 + signal.SIGKILL


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
