"""What can go wrong when an environment is built."""

from __future__ import annotations

from dataclasses import dataclass

from deepseek_ops.core.errors import MissingDependencyError, PermanentError, TransientError


@dataclass(eq=False)
class EnvironmentBuildError(PermanentError):
    """The lock cannot be installed: a package does not exist, two contradict each other, a build failed."""

    file: str
    step: str
    lines: tuple[str, ...]

    def __str__(self) -> str:
        said = "\n".join(self.lines)
        return (
            f"the environment of {self.file} cannot be built: {self.step} failed. Correct the lock, or the index that "
            f"the worker's environment names (UV_DEFAULT_INDEX, UV_INDEX, UV_FIND_LINKS). It said:\n{said}"
        )


@dataclass(eq=False)
class IndexUnavailableError(TransientError):
    """The package index does not answer."""

    file: str
    step: str
    lines: tuple[str, ...]

    def __str__(self) -> str:
        said = "\n".join(self.lines)
        return f"the environment of {self.file} cannot be built now: {self.step}: the index does not answer.\n{said}"


@dataclass(eq=False)
class BuildTimeoutError(TransientError):
    """A build took too long. What was downloaded is kept, so the next try goes on from there."""

    file: str
    seconds: float

    def __str__(self) -> str:
        return f"building the environment of {self.file} took more than {self.seconds:.0f} s; it is tried again."


@dataclass(eq=False)
class BuildStoppedError(PermanentError):
    """Somebody stopped the task while it built."""

    file: str

    def __str__(self) -> str:
        return f"the build of the environment of {self.file} was stopped; nothing of it is left."


@dataclass(eq=False)
class CondaUnavailableError(MissingDependencyError):
    """The lock has conda packages and the worker has no conda."""

    def __str__(self) -> str:
        return (
            f"{self.needed_for} needs one of micromamba, mamba and conda on the worker's PATH; install {self.package}, "
            "or lock these packages with pip or uv."
        )


@dataclass(eq=False)
class UvUnavailableError(MissingDependencyError):
    """Reading ``uv.lock`` needs uv."""

    def __str__(self) -> str:
        return f"{self.needed_for} needs the program uv; `pip install uv` beside deepseek-ops, or put it on the PATH."
