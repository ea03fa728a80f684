"""Jobs as supervised process trees on this machine: the adapter of ``core.ports.Launcher`` that needs nothing else."""

from deepseek_ops.adapters.local_launcher.errors import (
    JobFolderError,
    JobNotRunningError,
    JobNotSettledError,
    JobStartError,
    NoSpaceForJobError,
    UnknownJobError,
)
from deepseek_ops.adapters.local_launcher.launcher import LocalLauncher

__all__ = [
    "JobFolderError",
    "JobNotRunningError",
    "JobNotSettledError",
    "JobStartError",
    "LocalLauncher",
    "NoSpaceForJobError",
    "UnknownJobError",
]
