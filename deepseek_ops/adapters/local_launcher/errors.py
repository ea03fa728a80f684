"""What can go wrong with jobs on this machine, besides the job itself."""

from __future__ import annotations

from dataclasses import dataclass

from deepseek_ops.core.errors import PermanentError, TransientError


@dataclass(eq=False)
class JobFolderError(PermanentError):
    """The folder of jobs cannot be read or written."""

    path: str
    problem: str

    def __str__(self) -> str:
        return (
            f"{self.path} cannot be used for jobs: {self.problem}. Correct its owner and rights, or name another root."
        )


@dataclass(eq=False)
class NoSpaceForJobError(PermanentError):
    """The disk below the jobs is full."""

    path: str
    free_bytes: int
    needed_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.path} has {self.free_bytes} bytes free and a job needs {self.needed_bytes}: "
            "remove settled jobs or name a root on another disk."
        )


@dataclass(eq=False)
class JobStartError(PermanentError):
    """The interpreter of the job cannot start ``deepseek_ops.jobs``."""

    job: str
    python: str
    problem: str

    def __str__(self) -> str:
        return (
            f"job {self.job} did not start: {self.python} -m deepseek_ops.jobs: {self.problem}. "
            "Check the interpreter's path and that deepseek-ops[train] is installed in it."
        )


@dataclass(eq=False)
class UnknownJobError(PermanentError):
    """No job of that name was ever submitted under this root."""

    job: str
    root: str

    def __str__(self) -> str:
        return f"no job {self.job} was submitted under {self.root}; check the name and the root."


@dataclass(eq=False)
class JobNotSettledError(TransientError):
    """The job still runs: it has no result yet, and its folder cannot be removed."""

    job: str

    def __str__(self) -> str:
        return f"job {self.job} is still running; wait for it or stop it first."


@dataclass(eq=False)
class JobNotRunningError(PermanentError):
    """The job has ended: nobody is there to do what is asked."""

    job: str
    phase: str

    def __str__(self) -> str:
        return f"job {self.job} has ended ({self.phase}): it can obey no request; submit it again first."


@dataclass(eq=False)
class OneMachineError(PermanentError):
    """A training of several machines, for the launcher of one."""

    job: str
    num_nodes: int

    def __str__(self) -> str:
        return (
            f"job {self.job} wants num_nodes={self.num_nodes}, and the local launcher has one machine: its ranks would "
            "wait for others that never come. Use one node, or the launcher of ray, slurm, kubernetes or sagemaker."
        )


@dataclass(eq=False)
class BudgetSpentError(PermanentError):
    """The attempts before this one have used up what all of them together may run."""

    job: str
    spent_seconds: float
    budget_seconds: float

    def __str__(self) -> str:
        return (
            f"job {self.job} has run for {self.spent_seconds:.0f} s in its attempts so far, and its budget of "
            f"{self.budget_seconds:.0f} s is for all of them; raise training.budget or the run's budget_usd to go on."
        )
