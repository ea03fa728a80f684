"""Which environment a run gets: its key, whether the worker has it already, and the interpreter that has it if not.

The key is a digest of what the lock asks for (comments, order and spelling do not count), the image, the Python
version, the machine and its C library. It is part of the run's manifest and of every job's name. A worker whose own
interpreter has what the lock asks for runs the jobs with it; else they run in an environment that is built once.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata

from packaging.markers import InvalidMarker, Marker

from deepseek_ops.adapters.environments import VenvCache
from deepseek_ops.core.config import PipelineFile
from deepseek_ops.core.environments import EnvironmentLock, Pin
from deepseek_ops.core.errors import ObjectNotFoundError, PermanentError, RefNotFoundError
from deepseek_ops.core.ports import Blobs, GitRemote
from deepseek_ops.core.records import Digest, FileSet, canonical_json, digest_of
from deepseek_ops.pipeline.environment_locks import read_lock
from deepseek_ops.pipeline.environment_machine import Machine
from deepseek_ops.pipeline.environment_requirements import (
    LockFileError,
    UnpinnedLockError,
    parse_requirements,
)

__all__ = [
    "EnvironmentMismatchError",
    "LockFileError",
    "UnpinnedLockError",
    "committed_lock",
    "differences",
    "environment_key",
    "interpreter_for",
    "lock_of_code",
    "parse_lock",
    "require_installed",
]

MAX_LOCK_BYTES = 8 << 20


@dataclass(eq=False)
class EnvironmentMismatchError(PermanentError):
    """A job ran, or would run, with other versions than the lock."""

    file: str
    differences: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"the job environment does not match {self.file}: {'; '.join(self.differences[:5])}. "
            "Install the lock where the launcher's interpreter runs, or correct the pins."
        )


def environment_key(lock: EnvironmentLock | None, *, image: str, machine: Machine | None = None) -> str:
    """Return the environment's key: 32 hex digits. ``image`` is its name, best with its digest; "" = the machine's.

    ``machine`` is the one that plans the run; None = this one.
    """
    python = lock.python if lock else ""
    planner = machine or Machine.here()
    return digest_of(
        canonical_json(
            {
                "lock": lock.digest if lock else "",
                "image": image,
                "python": python or planner.python,
                "platform": planner.platform,
                "libc": planner.libc,
            }
        )
    )[:32]


def committed_lock(git: GitRemote, commit: str, config: PipelineFile) -> EnvironmentLock | None:
    """Return the lock of a commit; None when it has none and the pipeline file names none.

    Raises UnpinnedLockError, LockFileError, UvUnavailableError, and RefNotFoundError when the named one is missing.
    """
    path = config.jobs.setup.requirements

    def read(name: str) -> str | None:
        try:
            return _text(git.read_file(commit, name, max_bytes=MAX_LOCK_BYTES), name)
        except RefNotFoundError:
            return None

    if read(path) is None:
        if "requirements" in config.jobs.setup.model_fields_set:
            raise RefNotFoundError(git.url, path)
        return None
    return read_lock(path, read)


def lock_of_code(blobs: Blobs, code: Digest, path: str) -> EnvironmentLock | None:
    """Return the lock of a run from its stored code; None when the run has none (``path`` is empty).

    ``code`` is the blob of the code's FileSet, ``path`` what the run's plan says its lock is.
    """
    if not path:
        return None
    files = {entry.path: entry.digest for entry in FileSet.load(json.loads(blobs.get(code))).files}

    def read(name: str) -> str | None:
        try:
            return _text(blobs.get(files[name]), name) if name in files else None
        except ObjectNotFoundError as error:
            raise LockFileError(
                name, 0, f"its object is not in the store: {error}", "Push the commit again."
            ) from error

    return read_lock(path, read)


def differences(lock: EnvironmentLock) -> tuple[str, ...]:
    """Return what this interpreter has otherwise than the lock asks, a phrase each; empty = it can run the jobs.

    A local build tag (``+cpu``) is a build of the same version and counts as equal; pins whose marker does not hold
    here do not count. Extra packages are no difference: jobs find what is locked.
    """
    ours = "{}.{}".format(*sys.version_info[:2])
    wrong = [f"Python {lock.python}, this is {ours}"] if lock.python and lock.python != ours else []
    if lock.conda:
        wrong.append(f"{len(lock.conda)} conda packages")
    return (*wrong, *(problem for pin in lock.pins if _holds(pin) and (problem := _difference(pin))))


@contextlib.contextmanager
def interpreter_for(
    lock: EnvironmentLock | None,
    cache: Callable[[], VenvCache],
    *,
    say: Callable[[str], None],
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[str]:
    """Give the interpreter that has what the lock asks for; "" = the launcher's own. Submit the job inside the block.

    A job that has been started keeps its environment itself. ``cache`` is opened only where one is needed. Raises what
    ``VenvCache.interpreter`` raises.
    """
    wrong = differences(lock) if lock else ()
    if lock is None or not wrong:
        yield ""
        return
    say(f"{lock.file} asks for what this interpreter lacks: {'; '.join(wrong[:3])}{' ...' if len(wrong) > 3 else ''}")
    with cache().interpreter(lock, say=say, stopped=stopped) as environment:
        say(f"the job runs in environment {environment.entry[:12]} ({'built' if environment.built else 'reused'})")
        yield str(environment.python)


def parse_lock(text: str, *, file: str) -> dict[str, str]:
    """Return package -> exact version of a requirements file without includes. Raises UnpinnedLockError."""
    return {pin.name: pin.version for pin in parse_requirements(text, file=file).pins}


def require_installed(lock: EnvironmentLock) -> None:
    """Check that this interpreter has what the lock names. Raises EnvironmentMismatchError listing what differs."""
    if wrong := differences(lock):
        raise EnvironmentMismatchError(lock.file, wrong)


def marker_holds(marker: str) -> bool:
    """Return whether an environment marker holds for this interpreter; one that cannot be read does."""
    try:
        return not marker or Marker(marker).evaluate()
    except InvalidMarker:
        return True  # the installer says what is wrong with it


def _holds(pin: Pin) -> bool:
    return marker_holds(pin.marker)


def _difference(pin: Pin) -> str:
    try:
        found = metadata.distribution(pin.name)
    except metadata.PackageNotFoundError:
        return f"{pin.name}=={pin.version or pin.url} is not installed"
    if pin.url:
        return "" if _same_source(pin, found.read_text("direct_url.json")) else f"{pin.name} from {pin.url}"
    installed = found.version
    same = installed == pin.version or ("+" not in pin.version and installed.partition("+")[0] == pin.version)
    return "" if same else f"{pin.name}=={pin.version}, installed {installed}"


def _same_source(pin: Pin, direct_url: str | None) -> bool:
    """Return whether a package was installed from the commit or the archive that the pin names."""
    try:
        source = json.loads(direct_url or "{}")
    except ValueError:
        return False
    commit = source.get("vcs_info", {}).get("commit_id", "")
    archive = source.get("archive_info", {})
    known = {f"{name}:{value}" for name, value in (archive.get("hashes") or {}).items()}
    return bool(commit and f"@{commit}" in pin.url) or bool(known & set(pin.hashes))


def _text(data: bytes, path: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LockFileError(path, 0, "it is not UTF-8 text.", "Save it as UTF-8.") from error
