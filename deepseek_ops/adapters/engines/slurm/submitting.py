"""The arguments and variables with which a job is given to ``sbatch``.

Variables, secret ones among them, reach ``sbatch`` as a list on a file descriptor and the job as its environment. They
are in no argument list, script, comment or ``scontrol show job``. What is left: ``slurmctld`` keeps them below its
``StateSaveLocation`` as long as it knows the job, readable by Slurm's own user and root, and a cluster whose database
stores environments (``AccountingStoreFlags=job_env``) shows them to the job's user and to operators. Where that is too
much, keep secrets out of the job: give the nodes a role or a credentials file, and leave the secrets empty.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from deepseek_ops.adapters.engines.slurm.errors import SlurmRefusedError
from deepseek_ops.adapters.engines.slurm.script import MARK, batch_script
from deepseek_ops.adapters.engines.slurm.settings import SlurmSettings
from deepseek_ops.core.jobs import EngineJob

_SIGNAL_SLACK_SECONDS = 60
"""Slurm may send the signal before the time limit this much too early."""
_MAX_SIGNAL_SECONDS = 65535


def submission(job: EngineJob, settings: SlurmSettings, *, name: str, output: str) -> list[str]:
    """Return the arguments of ``sbatch``.

    The time limit is the backstop of a supervisor that keeps the job's own one to the second, so it comes later: by the
    grace, in which the tasks have had SIGTERM, and by what Slurm's clock is coarse.
    """
    minutes = math.ceil((job.timeout_seconds + job.grace_seconds + _SIGNAL_SLACK_SECONDS) / 60)
    if settings.max_minutes is not None:
        minutes = min(minutes, settings.max_minutes)
    grace = min(math.ceil(job.grace_seconds), _MAX_SIGNAL_SECONDS)
    chosen = {
        "partition": settings.partition,
        "account": settings.account,
        "qos": settings.qos,
        "constraint": settings.constraint,
        "reservation": settings.reservation,
        "gpus-per-node": _gpus(job, settings),
        "mem": f"{math.ceil(job.memory_bytes / 2**20)}M" if job.memory_bytes else "",
        "signal": f"TERM@{grace}" if grace else "",
    }
    script = batch_script(
        job.command,
        name=name,
        output=output,
        grace_seconds=job.grace_seconds,
        srun_options=_step_options(job, settings),
        bin_folder=settings.bin_folder,
    )
    return [
        "--parsable",
        f"--job-name={name}",
        f"--comment={MARK}{job.id}",
        f"--nodes={job.num_nodes}-{job.num_nodes}",
        f"--ntasks={job.num_nodes}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={job.cpus_per_node}",
        f"--time={minutes}",
        "--no-requeue",
        f"--output={output}",
        "--open-mode=append",
        "--export-file=3",
        *(f"--{option}={value}" for option, value in chosen.items() if value),
        *settings.sbatch_options,
        f"--wrap={script}",
    ]


def variables(job: EngineJob, settings: SlurmSettings, secrets: Mapping[str, str]) -> bytes:
    """Return ``NAME=value`` pairs, each ended by a zero byte: the cluster's, the job's, the secret ones.

    Raises SlurmRefusedError for a name or value that is no variable.
    """
    merged = {**settings.environment, **job.environment, **secrets}
    for name, value in merged.items():
        if not name or "=" in name or "\0" in name + value:
            raise SlurmRefusedError(f"variable {name.partition('=')[0]!r}", "it has an '=' or a zero byte in it")
    return b"".join(f"{name}={value}\0".encode() for name, value in merged.items())


def _gpus(job: EngineJob, settings: SlurmSettings) -> str:
    if not job.gpus_per_node:
        return ""
    return f"{settings.gpu_type}:{job.gpus_per_node}" if settings.gpu_type else str(job.gpus_per_node)


def _step_options(job: EngineJob, settings: SlurmSettings) -> list[str]:
    options = [f"--cpus-per-task={job.cpus_per_node}"]  # since 22.05 a step does not inherit it
    if job.num_nodes > 1:
        options.append("--label")
    if job.image:
        options += [f"--container-image={job.image}", *settings.container_options]
    return [*options, *settings.srun_options]
