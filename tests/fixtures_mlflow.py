"""A real MLflow server, in an environment of its own, because it does not install beside Airflow."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deepseek_ops.embedded.processes import free_port

_PEER = Path(__file__).parents[1] / ".deepseek-ops" / "peers" / "mlflow"
_START_SECONDS = 120


def mlflow_program() -> Path:
    """Return the program, installed now if need be. Skips the test where it cannot be."""
    program = _PEER / "bin" / "mlflow"
    if program.exists():
        return program
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if uv is None:
        pytest.skip("MLflow needs an environment of its own, and there is no uv to make it")
    python = str(_PEER / "bin" / "python")
    try:
        subprocess.run([uv, "venv", "--quiet", "--clear", "--python", "3.11", str(_PEER)], check=True, timeout=120)
        subprocess.run([uv, "pip", "install", "--quiet", "--python", python, "mlflow<3.18"], check=True, timeout=280)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        pytest.skip(f"MLflow cannot be installed: {error}")
    return program


@pytest.fixture(scope="session")
def mlflow_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with an empty database, one for all tests."""
    program, home, port = mlflow_program(), tmp_path_factory.mktemp("mlflow"), free_port()
    database, artifacts = f"sqlite:///{home / 'mlflow.db'}", str(home / "artifacts")
    options = ["--backend-store-uri", database, "--default-artifact-root", artifacts, "--host", "127.0.0.1"]
    environment = {"PATH": f"{program.parent}:/usr/bin:/bin", "HOME": str(home), "MLFLOW_DISABLE_TELEMETRY": "true"}
    environment |= {"DO_NOT_TRACK": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(
            [str(program), "server", *options, "--port", str(port), "--workers", "1"],
            env=environment,
            cwd=home,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _await(url, server, home / "log")
        yield url
    finally:
        server.terminate()
        try:
            server.wait(timeout=20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(timeout=10)


def _await(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if httpx.get(f"{url}/health", timeout=2).status_code == httpx.codes.OK:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.3)
    pytest.fail(f"MLflow did not start: {log.read_text(errors='replace')[-2000:]}")
