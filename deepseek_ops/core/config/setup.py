"""The environment a run's jobs use."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, model_validator

from deepseek_ops.core.config.base import Config, Matches, Problem, Problems, RepoPath, warn

_INSTALL = re.compile(r"(?:python3? -m )?(?:uv )?pip3? install -r (\S+)")

Image = Annotated[str, Matches(r"^[a-z0-9][A-Za-z0-9._/:@-]{0,254}$", "an image such as nvidia-cuda:13.0-base")]


class Cache(Config):
    """Folders that are kept between set-ups with an equal key."""

    key: str = Field(min_length=1, description="Such as ${{ hashFiles('requirements.txt') }}; kept as text.")
    paths: tuple[str, ...] = Field(min_length=1, description="Folders in the container.")


class SetupStep(Config):
    """One entry of ``steps``: a command or a cache."""

    name: str = Field(default="", description="For people.")
    run: str | None = Field(default=None, min_length=1, description="Shell command.")
    cache: Cache | None = Field(default=None, description="Folders to keep.")

    @model_validator(mode="after")
    def _one_kind(self) -> SetupStep:
        if (self.run is None) == (self.cache is None):
            raise Problems((Problem((), "a step needs one of run and cache.", "Write two steps, or fill this one."),))
        return self

    @property
    def installs(self) -> str | None:
        """The requirements file that the command installs, where it does nothing else."""
        match = _INSTALL.fullmatch(self.run.strip()) if self.run else None
        return match[1] if match else None


class Setup(Config):
    """The environment; its key is the digest of the requirements file and the image."""

    container: Image | None = Field(default=None, description="Image the jobs run in; none = the launcher's machine.")
    requirements: RepoPath = Field(
        default="requirements.txt",
        description="Lock file in the model repository: requirements.txt, uv.lock or environment.yml.",
    )
    drift: Literal["error", "warn"] = Field(
        default="error", description="When a job ran with other versions than the lock: fail its task, or warn."
    )
    steps: tuple[SetupStep, ...] = Field(default=(), description="Accepted from other CI systems; see warnings.")

    @model_validator(mode="after")
    def _steps_are_covered(self, info: ValidationInfo) -> Setup:
        for at, step in enumerate(self.steps):
            if step.run is not None and step.installs != self.requirements:
                warn(
                    info,
                    f"jobs.setup.steps[{at}].run is not executed: the environment is made from "
                    f"{self.requirements!r} and the image; put what it installs there",
                )
        return self


class Jobs(Config):
    """The jobs a file can shape."""

    setup: Setup = Field(default=Setup(), description="The environment of every job.")
