"""The user's own git in the user's own clone, where their configuration, hooks and credentials must count.

The ``git`` adapter beside this package is the opposite: it runs for a server and obeys no configuration at all.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deepseek_ops.core.errors import PermanentError

LOCAL_SECONDS = 600.0


@dataclass(eq=False)
class WorkTreeGitError(PermanentError):
    """git refuses in a clone of the user's."""

    folder: str
    command: str
    problem: str

    def __str__(self) -> str:
        return f"git {self.command} failed in {self.folder}: {self.problem}."


def git(
    folder: Path,
    *arguments: str,
    data: bytes | None = None,
    environment: Mapping[str, str] | None = None,
    seconds: float = LOCAL_SECONDS,
) -> bytes:
    """Return what git wrote to standard output. Raises WorkTreeGitError with its last line of complaint."""
    status, output, message = try_git(folder, *arguments, data=data, environment=environment, seconds=seconds)
    if status:
        lines = [line.strip() for line in message.splitlines() if line.strip()]
        told = [line for line in lines if line.startswith(("fatal:", "error:"))] or lines[-1:] or ["no message"]
        raise WorkTreeGitError(str(folder), " ".join(arguments[:2]), told[0].rstrip(".")[:400])
    return output


def try_git(
    folder: Path,
    *arguments: str,
    data: bytes | None = None,
    environment: Mapping[str, str] | None = None,
    seconds: float = LOCAL_SECONDS,
) -> tuple[int, bytes, str]:
    """Return exit status, standard output and messages. Raises WorkTreeGitError when git is missing or hangs."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            input=b"" if data is None else data,
            capture_output=True,
            env=environment,
            timeout=seconds,
            check=False,
        )
    except FileNotFoundError as error:
        problem = "the folder does not exist" if not folder.is_dir() else f"{error.filename} is not installed"
        raise WorkTreeGitError(str(folder), arguments[0], problem) from None
    except subprocess.TimeoutExpired:
        raise WorkTreeGitError(str(folder), arguments[0], f"no answer within {seconds:.0f} s") from None
    return done.returncode, done.stdout, done.stderr.decode(errors="replace")


def top_folder(folder: Path) -> Path:
    """Return the root of the work tree that ``folder`` is in. Raises WorkTreeGitError outside of one."""
    return Path(git(folder, "rev-parse", "--show-toplevel").decode().rstrip("\n"))
