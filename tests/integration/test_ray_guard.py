"""The guard between Ray's worker and a job's command, and the client of the Jobs API, with real processes."""

from __future__ import annotations

import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepseek_ops.adapters.engines.ray import (
    RayAccessError,
    RayAddressError,
    RayJobsApi,
    RayRefusedError,
    RayUnavailableError,
)
from deepseek_ops.adapters.local_launcher.processes import process

TREE = """
import os, signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
open(sys.argv[1], "w").write(f"{os.getpid()} {child.pid}")
def told(*_):
    open(sys.argv[1] + ".told", "w").close()
    if sys.argv[2] == "obey":
        sys.exit(75)
signal.signal(signal.SIGTERM, told)
print("up", flush=True)
while True:
    time.sleep(0.1)
"""


def guard(*command: str, grace: float = 1.0) -> subprocess.Popen[bytes]:
    """Start a command below a guard."""
    argv = [sys.executable, "-m", "deepseek_ops.jobs.ray_guard", str(grace), "--", *command]
    return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def tree(mark: Path, manner: str, grace: float = 1.0) -> tuple[subprocess.Popen[bytes], list[int]]:
    """Start a command with a child in another session; return the guard and both processes."""
    held = guard(sys.executable, "-c", TREE, str(mark), manner, grace=grace)
    assert held.stdout is not None
    assert held.stdout.readline() == b"up\n"
    return held, [int(pid) for pid in mark.read_text().split()]


def said(held: subprocess.Popen[bytes]) -> bytes:
    """Return all output, with the pipe to the guard held open: closing it would be an order."""
    assert held.stdout is not None
    return held.stdout.read()


def gone(pids: list[int]) -> bool:
    """Return whether the processes end within a moment."""
    deadline = time.monotonic() + 10
    while any((found := process(pid)) is not None and not found.zombie for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("status", [0, 75, 78])
def test_the_status_of_the_command_is_the_guard_s(status: int) -> None:
    held = guard(sys.executable, "-c", f"import sys; print('said', flush=True); sys.exit({status})")
    assert said(held) == b"said\n"
    assert held.wait(timeout=60) == status


def test_a_command_that_cannot_start_is_named() -> None:
    held = guard("/no/such/program")
    assert b"/no/such/program cannot be started: No such file" in said(held)
    assert held.wait(timeout=60) == 127


def test_a_command_that_a_signal_ends_is_told_from_one_that_exits() -> None:
    held = guard(sys.executable, "-c", "import os; os.kill(os.getpid(), 15)")
    assert said(held) == b""
    assert held.wait(timeout=60) == 128 + signal.SIGTERM


def test_everything_ends_when_the_holder_of_the_pipe_is_gone(tmp_path: Path) -> None:
    held, pids = tree(tmp_path / "mark", "ignore", grace=600)
    assert held.stdin is not None
    held.stdin.close()
    assert gone(pids)
    assert held.wait(timeout=10) == 128 + signal.SIGKILL
    assert not (tmp_path / "mark.told").exists(), "a successor may run already: there is no time for manners"


def test_a_command_that_is_told_to_end_ends_with_all_it_started(tmp_path: Path) -> None:
    held, pids = tree(tmp_path / "mark", "obey", grace=600)
    held.terminate()
    assert held.wait(timeout=30) == 75
    assert gone(pids)


def test_a_command_that_does_not_obey_is_killed_after_its_grace(tmp_path: Path) -> None:
    held, pids = tree(tmp_path / "mark", "ignore", grace=0.5)
    held.terminate()
    assert held.wait(timeout=30) == 128 + signal.SIGKILL
    assert (tmp_path / "mark.told").exists()
    assert gone(pids)


def test_the_command_dies_with_the_guard(tmp_path: Path) -> None:
    held, pids = tree(tmp_path / "mark", "ignore")
    held.kill()
    held.wait()
    assert gone(pids[:1])
    for pid in pids[1:]:  # what it had put into another session is the job supervisor's to end
        os.kill(pid, signal.SIGKILL)


# --- the API client ---------------------------------------------------------------------------------------------------


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers every request with what the test has put here."""

    status, text, seen = 200, "{}", []

    def do_GET(self) -> None:
        self.seen.append((self.command, self.path, dict(self.headers)))
        self.rfile.read(int(self.headers.get("content-length") or 0))
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(self.text.encode())

    do_POST = do_DELETE = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[str]:
    Answers.seen = []
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()
    httpd.server_close()


@pytest.mark.parametrize(
    ("status", "text", "error", "says"),
    [
        (404, "<html>nginx</html>", RayAddressError, "dashboard"),
        (200, "<html>hello</html>", RayAddressError, "no JSON"),
        (302, "", RayAddressError, "redirects"),
        (401, "Unauthorized: Missing authentication token", RayAccessError, "Missing authentication token"),
        (403, "Forbidden: Invalid authentication token", RayAccessError, "RAY_AUTH_TOKEN"),
        (400, "TypeError: entrypoint must be a string", RayRefusedError, "entrypoint must be a string"),
        (503, "no healthy upstream", RayUnavailableError, "no healthy upstream"),
        (500, "Traceback...\nRpcError: the head is gone\n", RayUnavailableError, "the head is gone"),
    ],
)
def test_what_is_wrong_decides_whether_another_try_can_help(server: str, status, text, error, says) -> None:
    Answers.status, Answers.text = status, text
    with pytest.raises(error, match=says):
        RayJobsApi(server).job("a")


def test_a_cluster_that_is_away_can_come_back() -> None:
    with pytest.raises(RayUnavailableError, match=r"http://127\.0\.0\.1:1 did not serve GET /api/jobs/a"):
        RayJobsApi("http://127.0.0.1:1").job("a")


def test_an_unknown_job_is_no_error_and_a_taken_id_is_told_from_other_refusals(server: str) -> None:
    api = RayJobsApi(server)
    Answers.status, Answers.text = 404, "Job a does not exist"
    assert api.job("a") is None
    assert api.logs("a") == ""
    assert api.stop("a") is False
    api.delete("a")
    Answers.status = 500
    Answers.text = (
        "Traceback\nValueError: Job with submission_id a already exists. Please use a different submission_id.\n"
    )
    assert api.submit({"entrypoint": "x", "submission_id": "a"}) is False
    Answers.text = "Traceback\nValueError: the runtime_env is wrong\n"
    with pytest.raises(RayRefusedError, match="the runtime_env is wrong"):
        api.submit({"entrypoint": "x", "submission_id": "a"})


def test_the_token_goes_with_every_request_and_into_no_error(server: str) -> None:
    Answers.status, Answers.text = 200, "[]"
    RayJobsApi(server, token="t0ken", headers={"X-Proxy": "p"}).jobs()
    ((_, path, headers),) = Answers.seen
    assert path == "/api/jobs/"
    assert (headers["X-Ray-Authorization"], headers["X-Proxy"]) == ("Bearer t0ken", "p")
    Answers.status, Answers.text = 403, "no"
    with pytest.raises(RayAccessError) as refused:
        RayJobsApi(server, token="t0ken").jobs()
    assert "t0ken" not in str(refused.value)
