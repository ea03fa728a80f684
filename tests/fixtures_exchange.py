"""The real DVC, in an environment of its own."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

REQUIREMENT = "dvc[s3]==3.67.1"
PEERS = Path(__file__).parents[1] / ".deepseek-ops" / "peers"


def dvc_program() -> Path:
    """Return the ``dvc`` program; the calling test is skipped where it cannot be had."""
    folder = PEERS / "dvc"
    program = folder / "bin" / "dvc"
    PEERS.mkdir(parents=True, exist_ok=True)
    with (PEERS / "dvc.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            uv = str(Path(sys.executable).parent / "uv")
            for command in (
                [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
                [uv, "pip", "install", "--quiet", "--python", str(folder / "bin" / "python"), REQUIREMENT],
            ):
                try:
                    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
                except (OSError, subprocess.TimeoutExpired) as error:
                    pytest.skip(f"{REQUIREMENT} cannot be installed: {error}")
                if done.returncode:
                    pytest.skip(f"{REQUIREMENT} cannot be installed: {done.stderr.strip()[-300:]}")
    return program


@pytest.fixture
def dvc(tmp_path: Path) -> Callable[..., str]:
    """Give a function that runs ``dvc`` (or with ``program="git"`` Git) in a folder, with a home of its own."""
    program = dvc_program()
    home = tmp_path / "home"
    home.mkdir()
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "DVC_", "AWS_"))},
        "HOME": str(home),
        "DVC_NO_ANALYTICS": "1",
        "GIT_CONFIG_NOSYSTEM": "1",
        **{f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in WHO.items()},
    }

    def run(folder: Path, *arguments: str, tool: str = "", env: dict[str, str] | None = None) -> str:
        command = [tool or str(program), *arguments]
        done = subprocess.run(
            command,
            cwd=folder,
            env={**variables, **(env or {})},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout

    return run


WHO = {"NAME": "Ada", "EMAIL": "ada@example.com"}
