"""How a supervisor gets going without a warm host: a new interpreter, half a second on an idle machine."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping

from deepseek_ops.adapters.local_launcher.errors import JobStartError
from deepseek_ops.adapters.local_launcher.folder import JOB_VARIABLE, JobFolder, disk
from deepseek_ops.adapters.local_launcher.reading import read_log

START_TIMEOUT_SECONDS = 120.0
_CALLERS_OWN = ("AIRFLOW_", "_AIRFLOW_", "__AIRFLOW_", JOB_VARIABLE)
"""Variables with these prefixes stay out of jobs: Airflow's database, keys and connections, a calling job's name."""


def start_cold(files: JobFolder, name: str, python: str, environment: Mapping[str, str], lock: int) -> None:
    """Start the supervisor of the job's newest attempt; returns when its folder names it. Raises JobStartError.

    ``lock`` is the job's lock; the supervisor inherits it, so it stays locked even if this process dies here.
    """
    command = [python, "-m", "deepseek_ops.jobs", "supervise", str(files.path), "--lock-fd", str(lock)]
    with disk(files.log), files.log.open("ab") as log:
        before = log.seek(0, os.SEEK_END)
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(environment),
                cwd=files.path,
                pass_fds=(lock,),
                start_new_session=True,
                timeout=START_TIMEOUT_SECONDS,
                check=False,
            )
        except FileNotFoundError as error:
            raise JobStartError(name, python, "no such program") from error
        except PermissionError as error:
            raise JobStartError(name, python, "it may not be executed") from error
        except subprocess.TimeoutExpired as error:
            raise JobStartError(name, python, f"not up after {START_TIMEOUT_SECONDS:g} s") from error
    if done.returncode:
        said = read_log(files, before)[0].strip().splitlines()
        raise JobStartError(name, python, said[-1] if said else f"exit status {done.returncode}")


def job_environment() -> dict[str, str]:
    """Return this process's environment for a job: all of it but Airflow's own settings, keys and connections."""
    return {name: value for name, value in os.environ.items() if not name.startswith(_CALLERS_OWN)}
