"""Guarded servers: whoever is killed, nothing of them survives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from deepseek_ops.embedded.processes import GuardedProcess, ServerStartError, end_recorded, start_time

# A server that starts a daemon of its own, in another session, that ignores SIGTERM.
SERVER = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
pid = os.fork()
if pid == 0:
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while True:
        time.sleep(0.1)
open(sys.argv[1], "w").write(f"{os.getpid()} {pid}")
while True:
    time.sleep(0.1)
"""


def wait_for(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def read_pids(path):
    def ready():
        words = path.read_text().split() if path.exists() else []
        return [int(word) for word in words] if len(words) == 2 else None

    return wait_for(ready)


def gone(pids):
    return all(start_time(pid) is None for pid in pids)


@pytest.fixture
def server_script(tmp_path):
    script = tmp_path / "server.py"
    script.write_text(SERVER)
    return script


def test_stop_ends_a_daemon_that_left_the_session_and_ignores_sigterm(tmp_path, server_script):
    server = GuardedProcess(
        "stubborn",
        [sys.executable, str(server_script), str(tmp_path / "pids")],
        folder=tmp_path,
        environment=dict(os.environ),
        grace_seconds=1,
    )
    server.start()
    pids = read_pids(tmp_path / "pids")
    server.stop(timeout=60)
    assert gone(pids)
    assert not server.record.exists()


def test_the_servers_end_when_their_owner_is_killed(tmp_path, server_script):
    owner = (
        "import os, sys, time\nfrom pathlib import Path\n"
        "from deepseek_ops.embedded.processes import GuardedProcess\n"
        "folder = Path(sys.argv[1])\n"
        "server = GuardedProcess('s', [sys.executable, sys.argv[2], str(folder / 'pids')], folder=folder,"
        " environment=dict(os.environ), grace_seconds=1)\n"
        "server.start()\ntime.sleep(600)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", owner, str(tmp_path), str(server_script)])
    pids = read_pids(tmp_path / "pids")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: gone(pids), 60)


def test_a_kept_server_survives_its_owner_and_is_ended_by_its_record(tmp_path, server_script):
    owner = (
        "import os, sys\nfrom pathlib import Path\n"
        "from deepseek_ops.embedded.processes import GuardedProcess\n"
        "folder = Path(sys.argv[1])\n"
        "GuardedProcess('kept', [sys.executable, sys.argv[2], str(folder / 'pids')], folder=folder,"
        " environment=dict(os.environ), keep=True, grace_seconds=1).start()\n"
    )
    subprocess.run([sys.executable, "-c", owner, str(tmp_path), str(server_script)], check=True)
    pids = read_pids(tmp_path / "pids")
    time.sleep(1)
    assert not gone(pids)
    assert end_recorded(tmp_path, timeout=60) == ["kept"]
    assert gone(pids)
    assert end_recorded(tmp_path) == []


def test_the_server_ends_when_its_guard_is_killed(tmp_path, server_script):
    server = GuardedProcess(
        "guarded",
        [sys.executable, str(server_script), str(tmp_path / "pids")],
        folder=tmp_path,
        environment=dict(os.environ),
        grace_seconds=1,
    )
    server.start()
    pids = read_pids(tmp_path / "pids")
    os.kill(server._guard.pid, signal.SIGKILL)
    wait_for(lambda: gone(pids[:1]))
    os.kill(pids[1], signal.SIGKILL)  # the daemon had left for init: what no guard can follow
    server.stop()


def test_a_server_that_ends_at_once_is_reported_with_its_last_line(tmp_path):
    server = GuardedProcess(
        "broken",
        [sys.executable, "-c", "raise SystemExit('the disk is full')"],
        folder=tmp_path,
        environment=dict(os.environ),
        grace_seconds=1,
    )
    server.start()
    wait_for(lambda: not server.running)
    with pytest.raises(ServerStartError, match="the disk is full"):
        server.require_running()
    server.stop()
