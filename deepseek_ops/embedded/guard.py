"""``guard [--keep] [--grace SECONDS] -- COMMAND``: run a server and let nothing of it survive.

The guard becomes a child subreaper, so daemons that detach themselves are re-parented to it and not to init. It ends
the tree on SIGTERM/SIGINT, when the command ends, and, without ``--keep``, when its standard input reaches its end
(the owner is gone). Ending is SIGTERM to the command, a grace, then SIGKILL to every descendant until none is left.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
GRACE_SECONDS = "15"


def descendants(root: int) -> list[int]:
    """Return the pids below ``root``, parents first, from one pass over /proc."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if fields[0] not in ("Z", "X"):
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: list[int] = []
    queue = [root]
    while queue:
        below = children.get(queue.pop(0), [])
        found += below
        queue += below
    return found


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _end(server: subprocess.Popen[bytes], grace: float) -> None:
    if server.poll() is None:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(grace)
    # What is left had its own session (jobs, daemons): ask once, then insist.
    for sign, seconds in ((signal.SIGTERM, min(grace, 5.0)), (signal.SIGKILL, 10.0)):
        deadline = time.monotonic() + seconds
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sign)
        while descendants(os.getpid()) and time.monotonic() < deadline:
            _reap()
            time.sleep(0.05)
    _reap()


def _end_with_guard() -> None:
    """Have the kernel end the server when the guard itself is killed (runs in the child, before the command)."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def main(arguments: list[str]) -> int:
    """Run the command after ``--`` and return its exit status (128 + signal when it was killed)."""
    split = arguments.index("--")
    options = arguments[:split]
    keep = "--keep" in options
    grace = float(options[options.index("--grace") + 1] if "--grace" in options else GRACE_SECONDS)
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    stopping = False

    def stop(_signal: int, _frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    server = subprocess.Popen(
        arguments[split + 1 :],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_end_with_guard,  # noqa: PLW1509  (this process has one thread)
    )
    while not stopping and server.poll() is None:
        if keep:
            time.sleep(0.5)
        else:
            with contextlib.suppress(InterruptedError):
                ready, _, _ = select.select([sys.stdin], [], [], 0.5)
                if ready and not os.read(sys.stdin.fileno(), 1):
                    stopping = True
    _end(server, grace)
    status = server.returncode
    return 128 - status if status is not None and status < 0 else int(status or 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
