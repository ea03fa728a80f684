"""Environments of jobs on this machine: built once per lock, shared, kept while somebody uses them.

Context: a model repository's lock may ask for other packages than the worker has. Choice: one virtual environment per
(lock, interpreter, our own version), built in a folder of its own and published by one atomic file; the packages that
our jobs need and the lock does not name are added in the versions the worker has. Nothing of Airflow is in it. Cost:
disk, shared with uv's cache where that lies on the same file system, and a build before the first job.
"""

from deepseek_ops.adapters.environments.errors import (
    BuildStoppedError,
    CondaUnavailableError,
    EnvironmentBuildError,
    IndexUnavailableError,
)
from deepseek_ops.adapters.environments.runtime import Runtime
from deepseek_ops.adapters.environments.uv_export import export_uv_lock
from deepseek_ops.adapters.environments.venvs import BuiltEnvironment, VenvCache

__all__ = [
    "BuildStoppedError",
    "BuiltEnvironment",
    "CondaUnavailableError",
    "EnvironmentBuildError",
    "IndexUnavailableError",
    "Runtime",
    "VenvCache",
    "export_uv_lock",
]
