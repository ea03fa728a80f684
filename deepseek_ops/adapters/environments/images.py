"""Environments as container images, for engines that run jobs in containers: the name, and what builds it.

Nothing here builds or pushes: a machine that runs Airflow often may not. The tag is the environment's key, so an engine
that finds it in the repository needs no build, and one that does not says which command makes it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from deepseek_ops.adapters.environments.building import rendered
from deepseek_ops.core.environments import EnvironmentLock
from deepseek_ops.core.errors import PermanentError

TAG_DIGITS = 12
_REPOSITORY = re.compile(r"[a-z0-9][a-z0-9.-]*(:[0-9]+)?(/[a-z0-9][a-z0-9._-]*)*")
_PINNED = re.compile(r"(:[A-Za-z0-9_][A-Za-z0-9._-]{0,127})?(@sha256:[0-9a-f]{64})?")


@dataclass(eq=False)
class ImageNameError(PermanentError):
    """A name that is none of an image."""

    name: str

    def __str__(self) -> str:
        return (
            f"{self.name!r} is no image name; write host/repository, and for a base host/repository:tag or its digest."
        )


@dataclass(eq=False)
class ImageLockError(PermanentError):
    """A lock that an image cannot be rendered for."""

    file: str

    def __str__(self) -> str:
        return f"{self.file} has conda packages; images are rendered for pip and uv locks: lock these with one of them."


def image_tag(repository: str, key: str) -> str:
    """Return ``<repository>:<first 12 digits of the environment's key>``. Raises ImageNameError."""
    if not _REPOSITORY.fullmatch(repository) or ":" in repository.rpartition("/")[2]:
        raise ImageNameError(repository)
    return f"{repository}:{key[:TAG_DIGITS]}"


def build_files(lock: EnvironmentLock, *, base: str, key: str) -> dict[str, str]:
    """Return the files of the build's folder: ``Dockerfile`` and the lock as ``lock.txt``.

    ``base`` is an image made of ``docker/jobs.Dockerfile``: it has our jobs, uv and a virtual environment in which the
    lock goes. Index addresses come as build secrets, so that no layer holds them. Raises ImageNameError,
    ImageLockError.
    """
    found = _REPOSITORY.match(base)
    if found is None or not base[found.end() :] or not _PINNED.fullmatch(base[found.end() :]):
        raise ImageNameError(base)
    if lock.conda:
        raise ImageLockError(lock.file)
    hashed = lock.require_hashes
    install = "uv pip install --no-cache --requirement lock.txt" + (" --require-hashes" if hashed else "")
    return {
        "Dockerfile": _DOCKERFILE.format(base=base, key=key, digest=lock.digest, install=install),
        "lock.txt": rendered(lock.pins, lock.options, hashes=hashed),
    }


def build_command(tag: str) -> tuple[str, ...]:
    """Return the command that builds the image in the folder of ``build_files``, index from the environment."""
    secret = "id=index,env=UV_DEFAULT_INDEX"  # noqa: S105  (the variable's name, not its value)
    return ("docker", "build", "--secret", secret, "--tag", tag, ".")


_DOCKERFILE = """\
# syntax=docker/dockerfile:1
# The environment of one lock. Build it in this folder; its tag is the key below.
FROM {base}
LABEL org.deepseek-ops.environment="{key}" \\
      org.deepseek-ops.lock="{digest}"
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
USER 0
WORKDIR /opt/environment
COPY lock.txt ./
# The index may be private: the secret is there while this runs and in no layer.
RUN --mount=type=secret,id=index,env=UV_DEFAULT_INDEX \\
    {install} \\
    && python -c 'import deepseek_ops.jobs.__main__'
USER 10001
WORKDIR /var/lib/deepseek-ops
"""
