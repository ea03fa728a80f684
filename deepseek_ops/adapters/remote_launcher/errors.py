"""What can go wrong with jobs on other machines, besides the job itself."""

from __future__ import annotations

from dataclasses import dataclass

from deepseek_ops.core.errors import PermanentError, TransientError


@dataclass(eq=False)
class SubmitRaceError(TransientError):
    """Others started and ended attempts of the job while this process tried to."""

    job: str
    tries: int

    def __str__(self) -> str:
        return f"job {self.job} was submitted and ended by others {self.tries} times; look at it and try again."


@dataclass(eq=False)
class RequestRaceError(TransientError):
    """Too many people asked something of the job at the same time."""

    job: str

    def __str__(self) -> str:
        return f"others asked something of job {self.job} at the same time, again and again; ask again."


@dataclass(eq=False)
class NoEnvironmentError(PermanentError):
    """A job of no run, on an engine whose image follows the run's environment."""

    job: str
    image: str

    def __str__(self) -> str:
        return (
            f"job {self.job} belongs to no run with an environment, which image {self.image!r} of its engine follows; "
            "give its connection an image without {environment}, or send the job to another launcher."
        )
