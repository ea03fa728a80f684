"""The lock file of a commit, whatever tool wrote it, as one record."""

from __future__ import annotations

import posixpath

from deepseek_ops.adapters.environments import export_uv_lock
from deepseek_ops.core.environments import EnvironmentLock
from deepseek_ops.pipeline.environment_conda import parse_conda
from deepseek_ops.pipeline.environment_requirements import LockFileError, Read, parse_requirements


def read_lock(path: str, read: Read) -> EnvironmentLock:
    """Return the lock at ``path`` of the model repository; ``read`` gives its files.

    The name says the format: ``uv.lock`` (with the ``pyproject.toml`` beside it), ``environment.yml`` or any other
    ``.yml``/``.yaml``, else a requirements file. Raises UnpinnedLockError naming file, lines and what stands there,
    LockFileError, UvUnavailableError.
    """
    text = read(path)
    if text is None:
        raise LockFileError(path, 0, "it is not in the commit.", "Push it, or correct jobs.setup.requirements.")
    name = posixpath.basename(path)
    if name == "uv.lock":
        beside = posixpath.join(posixpath.dirname(path), "pyproject.toml")
        project = read(beside)
        if project is None:
            raise LockFileError(path, 0, f"{beside} is not in the commit.", "Push it: uv.lock alone says too little.")
        exported = export_uv_lock(text, project, file=path)
        return parse_requirements(exported, file=path).evolve(format="uv")
    if name.endswith((".yml", ".yaml")):
        return parse_conda(text, file=path, read=read)
    return parse_requirements(text, file=path, read=read)
