"""What somebody who runs a Slurm cluster says about it once: where jobs go and how its commands are reached."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, StringConstraints, field_validator

from deepseek_ops.core.records import Name, Record

Word = Annotated[str, StringConstraints(pattern=r"^[^\s\x00-\x1f]*$", max_length=500)]
"""A value of one option: no blanks, no control characters."""
Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f]+$", max_length=2000)]
Variable = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

_OPTION = re.compile(r"^--[a-z][a-z0-9-]*(=[^\x00-\x1f]*)?$")
_OURS = frozenset(
    {
        "array",
        "chdir",
        "comment",
        "cpus-per-task",
        "dependency",
        "error",
        "export",
        "export-file",
        "get-user-env",
        "gpus-per-node",
        "hold",
        "input",
        "job-name",
        "kill-on-bad-exit",
        "label",
        "mem",
        "no-requeue",
        "nodes",
        "ntasks",
        "ntasks-per-node",
        "open-mode",
        "output",
        "parsable",
        "requeue",
        "signal",
        "time",
        "wrap",
    }
)
"""Options that the engine sets itself, or that would break one job per id."""


class SlurmSettings(Record):
    """One cluster: the extra of its Airflow connection, or a section of a file. Nothing in it is secret."""

    partition: Word = ""
    account: Word = ""
    qos: Word = ""
    constraint: Word = Field(default="", description="Features the nodes must have, such as `h100&nvlink`.")
    reservation: Word = ""
    gpu_type: Word = Field(default="", description="GPUs asked for by type, as in --gpus-per-node=h100:8.")
    sbatch_options: tuple[str, ...] = Field(default=(), description="More options, such as --exclusive, --switches=1.")
    srun_options: tuple[str, ...] = Field(default=(), description="More options of the step, such as --cpu-bind=none.")
    container_options: tuple[str, ...] = Field(
        default=(), description="Options of the step beside --container-image where the job names an image (pyxis)."
    )
    environment: dict[Variable, str] = Field(
        default_factory=dict, description="Variables of every job on this cluster; the job's own win."
    )
    bin_folder: Word = Field(default="", description="Where the commands are, here and on the nodes; empty = PATH.")
    folder: Word = Field(
        default="deepseek-ops-slurm",
        min_length=1,
        description="Folder of the jobs' output on a file system that nodes and commands share; below the home folder.",
    )
    via: tuple[Line, ...] = Field(
        default=(),
        description="Command that takes one shell line for the machine of the commands: ssh -oBatchMode=yes host.",
    )
    namespace: Name = Field(default="deepseek-ops", description="Begins the name of each job: one per installation.")
    max_minutes: int | None = Field(
        default=None, gt=0, description="Longest job the partition takes; a longer training comes back as a new job."
    )
    timeout_seconds: float = Field(default=60.0, gt=0, description="For one command.")
    history_days: int = Field(default=30, ge=0, description="How far back ended jobs are looked up; 0 = not at all.")

    @field_validator("sbatch_options", "srun_options", "container_options")
    @classmethod
    def _options(cls, options: tuple[str, ...]) -> tuple[str, ...]:
        for option in options:
            if not _OPTION.match(option):
                raise ValueError(f"{option!r} is not of the form --name or --name=value; write long options.")
            if option[2:].partition("=")[0] in _OURS:
                raise ValueError(f"{option!r} is set by the engine itself; leave it out.")
        return options
