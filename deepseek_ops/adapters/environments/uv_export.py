"""``uv.lock`` as a requirements file with hashes, written by uv itself: it alone knows its forks and markers."""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from deepseek_ops.adapters.environments.commands import build_environment, find_uv
from deepseek_ops.adapters.environments.errors import EnvironmentBuildError, UvUnavailableError

_SECONDS = 60


def export_uv_lock(lock: str, project: str, *, file: str) -> str:
    """Return the requirements of ``uv.lock`` (text), whose ``pyproject.toml`` is ``project``; reads no index.

    The project's own dependencies, no dependency groups, not the project itself. Raises UvUnavailableError, and
    EnvironmentBuildError when the two do not belong together.
    """
    uv = find_uv()
    if uv is None:
        raise UvUnavailableError("uv", "", f"reading {file}")
    with tempfile.TemporaryDirectory(prefix="deepseek-ops-lock-") as folder:
        (Path(folder) / "uv.lock").write_text(lock)
        (Path(folder) / "pyproject.toml").write_text(project)
        options = ["--frozen", "--no-emit-project", "--no-default-groups", "--no-header", "--no-annotate"]
        offline = ["--offline", "--no-cache", "--no-python-downloads", "--no-config"]
        done = subprocess.run(
            [uv, "export", *options, *offline, "--format", "requirements.txt"],
            cwd=folder,
            env=build_environment(os.environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    if done.returncode:
        raise EnvironmentBuildError(file, "uv export", tuple(done.stderr.strip().splitlines()[-20:]))
    return done.stdout
