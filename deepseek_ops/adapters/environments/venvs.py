"""The cache of environments on one machine.

::

    <root>/<entry>.json              published: names the folder; written in one step when the environment is complete
    <root>/<entry>.lock              flock: held by whoever builds it, and by the programs it has started
    <root>/envs/<entry>-<random>/    a virtual environment; paths inside it are absolute, so it never moves

``entry`` is a digest of what the lock asks for, the interpreter, the machine, and what our jobs need beside it. A
builder that is killed leaves a folder that nothing names; the next builder, or the next sweep, removes it. An
environment is removed, least recently used first, when all together are too large; never one that a job uses.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from deepseek_ops.adapters.environments.building import Build
from deepseek_ops.adapters.environments.commands import Commands, build_environment
from deepseek_ops.adapters.environments.errors import BuildStoppedError
from deepseek_ops.adapters.environments.removal import orphans, remove, size_of, too_many
from deepseek_ops.adapters.environments.runtime import Runtime
from deepseek_ops.adapters.local_launcher.environment_use import hold
from deepseek_ops.adapters.local_launcher.folder import disk, read_json, write_json
from deepseek_ops.core.environments import EnvironmentLock
from deepseek_ops.core.errors import InvalidRecordError
from deepseek_ops.core.records import Record, canonical_json, digest_of

DEFAULT_MAX_BYTES = 40 << 30
BUILD_TIMEOUT_SECONDS = 3600.0
_WAIT_SECONDS = 0.25
_SAY_AGAIN_SECONDS = 30.0

Say = Callable[[str], None]


class Published(Record):
    """What is known of a complete environment."""

    folder: str = Field(description="Name below envs/.")
    lock: str = Field(description="Digest of the lock.")
    bytes: int = Field(ge=0)
    seconds: float = Field(ge=0, description="How long the build took.")


@dataclass(frozen=True, slots=True)
class BuiltEnvironment:
    """An environment that stays for as long as its ``with`` block, or a job that was started in it."""

    python: Path
    entry: str
    built: bool
    """Whether it was built just now."""
    seconds: float
    """How long that took, or finding it."""


class VenvCache:
    """Environments below ``root``, a folder on a disk of this machine that only this user may enter.

    Args:
        root: Created where it is not there.
        runtime: What our jobs need in each; what the running interpreter has by default.
        max_bytes: Disk that environments may fill together; hard links count in full.
        timeout_seconds: Longest build.
        environment: Variables of the programs that build are taken from here; ``os.environ`` by default.
    """

    def __init__(
        self,
        root: Path,
        *,
        runtime: Runtime | None = None,
        max_bytes: int = DEFAULT_MAX_BYTES,
        timeout_seconds: float = BUILD_TIMEOUT_SECONDS,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._root = root.resolve()
        self._runtime = runtime or Runtime.of_this_interpreter()
        self._max_bytes = max_bytes
        self._timeout = timeout_seconds
        self._environment = build_environment(os.environ if environment is None else environment)

    @contextlib.contextmanager
    def interpreter(
        self, lock: EnvironmentLock, *, say: Say, stopped: Callable[[], bool] = lambda: False
    ) -> Iterator[BuiltEnvironment]:
        """Give the environment of a lock, built where it is not there yet. Nothing is fetched for one that is.

        Of many that ask at once one builds and the others wait. Raises EnvironmentBuildError, CondaUnavailableError,
        BuildStoppedError, and IndexUnavailableError or BuildTimeoutError, which another try may not meet.
        """
        started, entry = time.monotonic(), self.entry(lock)
        with disk(self._root):
            self._envs.mkdir(mode=0o700, parents=True, exist_ok=True)
        built, lease = False, self._take(entry)
        if lease is None:
            with self._locked(entry, lock.file, say, stopped) as held:
                lease = self._take(entry)
                if lease is None:
                    self._build(entry, lock, say, stopped, held)
                    built, lease = True, self._take(entry)
        if lease is None:
            raise BuildStoppedError(lock.file)  # removed by hand at this very moment
        descriptor, python = lease
        try:
            if built:
                self.sweep(say)
            yield BuiltEnvironment(python, entry, built, time.monotonic() - started)
        finally:
            os.close(descriptor)

    def entry(self, lock: EnvironmentLock) -> str:
        """Return the name of a lock's environment on this machine."""
        return digest_of(
            canonical_json(
                {
                    "lock": lock.digest,
                    "python": [platform.python_implementation(), *map(str, sys.version_info[:3]), sys.base_prefix],
                    "machine": [platform.system(), platform.machine(), *platform.libc_ver()],
                    "package": str(self._runtime.package),
                    "runtime": [*self._runtime.requirements, self._runtime.torch_build],
                    "versions": [list(pair) for pair in self._runtime.versions],
                }
            )
        )[:32]

    def published(self) -> dict[str, Published]:
        """Return entry -> what is known of it, least recently used first."""
        found = [(path.stat().st_mtime_ns, path.stem) for path in self._root.glob("*.json")]
        known = {entry: self._read(entry) for _, entry in sorted(found)}
        return {entry: one for entry, one in known.items() if one is not None}

    def sweep(self, say: Say = lambda _line: None) -> list[str]:
        """Remove what builders left behind, and unused environments while all are too large; return the entries."""
        known = self.published()
        for folder in orphans(self._envs, {one.folder for one in known.values()}):
            entry = folder.name.partition("-")[0]
            with self._try_lock(entry) as free:
                current = self._read(entry) if free else None
                if free and (current is None or current.folder != folder.name):
                    remove(folder)
        removed = []
        for entry in too_many({entry: one.bytes for entry, one in known.items()}, self._max_bytes):
            folder = self._envs / known[entry].folder
            with self._try_lock(entry) as free:
                if free and remove(folder, unless_used=True, first=self._pointer(entry)):
                    removed.append(entry)
                    say(f"removed environment {entry[:12]}, {known[entry].bytes >> 20} MiB, used least recently")
        return removed

    @property
    def _envs(self) -> Path:
        return self._root / "envs"

    def _pointer(self, entry: str) -> Path:
        return self._root / f"{entry}.json"

    def _read(self, entry: str) -> Published | None:
        body = read_json(self._pointer(entry))
        try:
            return None if body is None else Published.load(body)
        except InvalidRecordError:
            return None

    def _take(self, entry: str) -> tuple[int, Path] | None:
        """Return (lease, interpreter) of a published environment that is whole, and note that it was used."""
        known = self._read(entry)
        if known is None:
            return None
        folder = self._envs / known.folder
        lease = hold(folder)
        if lease is None:
            return None
        if self._read(entry) != known or not (folder / "bin" / "python").exists():
            os.close(lease)  # removed since we looked, or its base interpreter is gone
            return None
        with contextlib.suppress(FileNotFoundError):
            os.utime(self._pointer(entry))
        return lease, folder / "bin" / "python"

    def _build(self, entry: str, lock: EnvironmentLock, say: Say, stopped: Callable[[], bool], held: int) -> None:
        """Build and publish. The caller holds the entry's lock."""
        for folder in self._envs.glob(f"{entry}-*"):
            remove(folder)
        folder = self._envs / f"{entry}-{secrets.token_hex(4)}"
        say(f"building environment {entry[:12]} of {lock.file}: {len(lock.pins) + len(lock.conda)} packages locked")
        for note in lock.notes:
            say(note)
        started = time.monotonic()
        deadline = started + self._timeout
        commands = Commands(lock.file, self._environment, say, stopped, deadline, self._timeout, (held,))
        try:
            Build(lock, self._runtime, folder, commands).run()
        except BaseException:
            remove(folder)
            raise
        seconds = time.monotonic() - started
        size = size_of(folder)
        write_json(
            self._pointer(entry),
            Published(folder=folder.name, lock=lock.digest, bytes=size, seconds=round(seconds, 3)).dump(),
        )
        say(f"environment {entry[:12]} is built: {size >> 20} MiB in {seconds:.1f} s")

    @contextlib.contextmanager
    def _locked(self, entry: str, file: str, say: Say, stopped: Callable[[], bool]) -> Iterator[int]:
        """Hold the entry's lock and give its descriptor; waits for whoever builds it now, and says so."""
        opened = os.open(self._root / f"{entry}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        said = 0.0
        try:
            while not _lock(opened):
                if stopped():
                    raise BuildStoppedError(file)
                if time.monotonic() - said > _SAY_AGAIN_SECONDS:
                    say(f"another task builds environment {entry[:12]} of {file}: waiting for it")
                    said = time.monotonic()
                time.sleep(_WAIT_SECONDS)
            yield opened
        finally:
            os.close(opened)

    @contextlib.contextmanager
    def _try_lock(self, entry: str) -> Iterator[bool]:
        opened = os.open(self._root / f"{entry}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            yield _lock(opened)
        finally:
            os.close(opened)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
