"""Where the job commands find their launcher: a folder, a file that describes an engine, or the demo's."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from deepseek_ops.core.errors import ConfigError
from deepseek_ops.core.ports import Launcher, ObjectStore

LAUNCHER_VARIABLE = "DEEPSEEK_OPS_LAUNCHER"
_DEMO = Path(".deepseek-ops/demo/jobs")
_JOBS, _SPEC = "jobs", "spec.json"
"""What a folder of local jobs holds, and what each job in it has."""
_HELP = "Folder of local jobs, or a JSON file {engine, address, ...} of a scale-out engine; the demo's by default."
At = Annotated[str, typer.Option("--at", envvar=LAUNCHER_VARIABLE, help=_HELP)]


def opened_launcher(at: str, *, fresh: bool = False) -> Launcher:
    """Return the launcher that ``--at`` names; ``fresh``: it may be a folder without jobs. Raises ConfigError."""
    place = Path(at).expanduser() if at else _DEMO
    if place.is_file():
        from deepseek_ops.adapters.launchers import launcher_from_file
        from deepseek_ops.adapters.stores import STORE_VARIABLE, store_environment, store_from_environment

        def store() -> tuple[ObjectStore, Mapping[str, str]]:
            opened = store_from_environment(os.environ)
            return opened, store_environment(os.environ[STORE_VARIABLE])

        return launcher_from_file(place, store=store)
    if not place.is_dir():
        remedy = f"Name the folder of the jobs, or set {LAUNCHER_VARIABLE}."
        raise ConfigError(str(place), 0, "--at", "there is no such folder or file.", remedy)
    _require_jobs(place, fresh=fresh)
    from deepseek_ops.adapters.local_launcher import LocalLauncher

    return LocalLauncher(place)


def _require_jobs(place: Path, *, fresh: bool) -> None:
    """Raise ConfigError for a folder that is not one of local jobs, which would look as if there were none."""
    if (place / _JOBS).is_dir():
        return
    if place.name == _JOBS and any(place.glob(f"*/{_SPEC}")):
        raise ConfigError(str(place), 0, "--at", "it is the folder inside.", f"Name {place.parent}, which holds it.")
    if (place / _SPEC).is_file():
        remedy = f"Name {place.parent.parent} and the job {place.name}."
        raise ConfigError(str(place), 0, "--at", "it is the folder of one job.", remedy)
    if not fresh:
        remedy = f"Name the folder that `run --at` was given, or set {LAUNCHER_VARIABLE}."
        raise ConfigError(str(place), 0, "--at", "no job was ever started in it.", remedy)
