"""Slurm's commands, run here or on a login node, with every outside failure as one of three errors."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from deepseek_ops.adapters.engines.slurm.errors import SlurmMissingError, SlurmRefusedError, SlurmUnavailableError
from deepseek_ops.adapters.engines.slurm.settings import SlurmSettings

_KEPT = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "TZ", "SLURM_CONF", "SLURM_JWT", "SSH_AUTH_SOCK", "LD_LIBRARY_PATH")
"""All that a command gets of our environment: ``SBATCH_*`` and ``SLURM_*`` of a job around us would change ours."""
_AWAY = (
    "unable to contact slurm controller",
    "socket timed out",
    "connection refused",
    "connection timed out",
    "connection reset",
    "zero bytes were transmitted",
    "transport endpoint",
    "unexpected message received",
    "temporarily unable",
    "slurm backup controller in standby",
    "error connecting to slurm",
    "no route to host",
    "could not resolve",
    "submit limit",
    "maxsubmit",
    "job count limit",
)
"""In complaints of commands that another try can help with; a full queue among them."""
_SSH_FAILED = 255


class SlurmCommands:
    """Runs one command after another for one cluster; keeps nothing."""

    def __init__(self, settings: SlurmSettings) -> None:
        self._settings = settings

    def slurm(self, name: str, *arguments: str, given: bytes | None = None) -> str:
        """Return what a command of Slurm printed; ``given`` becomes its file descriptor 3.

        Raises SlurmUnavailableError, SlurmRefusedError or SlurmMissingError.
        """
        folder = self._settings.bin_folder
        argv = [str(PurePosixPath(folder) / name) if folder else name, *arguments]
        if given is not None:
            # sbatch takes no environment from descriptors below 3, and ssh carries none above 2.
            argv = ["sh", "-c", 'exec "$@" 3<&0 0</dev/null', "sh", *argv]
        return self.run(argv, given=given, what=name)

    def run(self, argv: Sequence[str], *, what: str, given: bytes | None = None) -> str:
        """Return what the argument list printed, run where Slurm's commands are."""
        full = [*self._settings.via, shlex.join(argv)] if self._settings.via else list(argv)
        try:
            done = subprocess.run(
                full,
                input=given,
                stdin=subprocess.DEVNULL if given is None else None,
                capture_output=True,
                timeout=self._settings.timeout_seconds,
                check=False,
                cwd=Path.home(),
                env={**{name: os.environ[name] for name in _KEPT if name in os.environ}, "LC_ALL": "C"},
            )
        except subprocess.TimeoutExpired:
            raise SlurmUnavailableError(what, f"no answer within {self._settings.timeout_seconds:g} s") from None
        except OSError as error:
            raise SlurmMissingError(str(error.filename or full[0])) from error
        if done.returncode:
            raise self._failure(what, done.returncode, done.stderr.decode(errors="replace"))
        return done.stdout.decode(errors="replace")

    def _failure(self, what: str, status: int, complaint: str) -> Exception:
        problem = " ".join(complaint.split())[-600:] or f"exit status {status}"
        if status in (126, 127) and ("not found" in complaint or "denied" in complaint):
            return SlurmMissingError(what)
        plain = problem.lower()
        denied = "permission denied (" in plain or "host key verification" in plain
        away = any(words in plain for words in _AWAY)
        if away or (self._settings.via and status == _SSH_FAILED and not denied):
            return SlurmUnavailableError(what, problem)
        return SlurmRefusedError(what, problem)
