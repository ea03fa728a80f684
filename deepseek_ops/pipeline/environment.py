"""Which environment a run gets: the digest of its lock, image and platform, and whether the lock really pins.

A lock that does not pin gives the same commit two environments, so it is refused with the offending lines.
"""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.records import canonical_json, digest_of

_PIN = re.compile(r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(\[[^\]]*\])?==(?P<version>[A-Za-z0-9.!+_-]+)\s*(;.*)?$")


@dataclass(eq=False)
class UnpinnedLockError(PermanentError):
    """Lines of the lock file that do not name one exact version."""

    file: str
    lines: tuple[tuple[int, str], ...]

    def __str__(self) -> str:
        shown = "; ".join(f"line {number}: {text!r}" for number, text in self.lines[:5])
        return f"{self.file} does not pin: {shown}. Write name==version on every line, or let a lock tool write it."


@dataclass(eq=False)
class EnvironmentMismatchError(PermanentError):
    """The interpreter that would run the job has other versions than the lock."""

    file: str
    differences: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"the job environment does not match {self.file}: {'; '.join(self.differences[:5])}. "
            "Install the lock where the launcher's interpreter runs, or correct the pins."
        )


def parse_lock(text: str, *, file: str) -> dict[str, str]:
    """Return package -> exact version. Raises UnpinnedLockError naming every line that is not a pin.

    Options, comments and hashes (lines that go on from a pin) are allowed; URLs and ranges are not.
    """
    pins: dict[str, str] = {}
    wrong: list[tuple[int, str]] = []
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.split(" #")[0].strip().rstrip("\\").strip()
        if not line or line.startswith(("#", "--")):
            continue
        match = _PIN.match(line.split(" --hash")[0].strip())
        if match is None:
            wrong.append((number, raw.strip()))
        else:
            pins[_canonical(match["name"])] = match["version"]
    if wrong:
        raise UnpinnedLockError(file, tuple(wrong))
    return pins


def environment_key(*, lock: str, image: str) -> str:
    """Return the environment's key: 32 hex digits over lock text, image name, Python and platform."""
    facts = {
        "lock": digest_of(lock.encode()),
        "image": image,
        "python": "{}.{}".format(*sys.version_info[:2]),
        "platform": f"{platform.system()}-{platform.machine()}".lower(),
    }
    return digest_of(canonical_json({**facts}))[:32]


def require_installed(pins: Mapping[str, str], *, file: str) -> None:
    """Check that this interpreter has what the lock names. Raises EnvironmentMismatchError listing what differs.

    The local engine runs jobs with the interpreter of its launcher, so a run whose lock asks for something else must
    not start: its result would be recorded under an environment it never had. A local build tag (``+cpu``) is a
    build of the same version and counts as equal.
    """
    wrong = []
    for name, version in sorted(pins.items()):
        try:
            installed = metadata.version(name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{name}=={version} is not installed")
            continue
        if installed.partition("+")[0] != version.partition("+")[0]:
            wrong.append(f"{name}=={version}, installed {installed}")
    if wrong:
        raise EnvironmentMismatchError(file, tuple(wrong))


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
