"""What can go wrong between us and a Slurm cluster."""

from __future__ import annotations

from dataclasses import dataclass

from deepseek_ops.core.errors import PermanentError, TransientError


@dataclass(eq=False)
class SlurmUnavailableError(TransientError):
    """The controller, or the machine of its commands, does not answer, or has no room for another job now."""

    command: str
    problem: str

    def __str__(self) -> str:
        return (
            f"Slurm does not answer {self.command}: {self.problem}. "
            "Check the controller (scontrol ping) and the way to it."
        )


@dataclass(eq=False)
class SlurmRefusedError(PermanentError):
    """Slurm does not take the job as it is asked for."""

    command: str
    problem: str

    def __str__(self) -> str:
        return (
            f"Slurm refuses {self.command}: {self.problem}. Correct partition, account, qos, options or size "
            "in the settings of this cluster (sinfo and sacctmgr show what there is)."
        )


@dataclass(eq=False)
class SlurmMissingError(PermanentError):
    """The commands of Slurm are not where they are looked for."""

    command: str

    def __str__(self) -> str:
        return (
            f"{self.command} is not installed here: install Slurm's client commands, name their `bin_folder`, "
            "or reach a login node with `via`."
        )
