"""Records of what a job runs with: the lock that asks for it, and the packages that were really there."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, JsonValue

from deepseek_ops.core.records import Digest, Record, canonical_json, digest_of

LockFormat = Literal["requirements", "uv", "conda"]


class Pin(Record):
    """One package of a lock: exactly one version, or exactly one commit or archive."""

    name: str = Field(description="Normalised: lower case, single dashes.")
    version: str = Field(default="", description="Exact version; empty for a package from a URL.")
    url: str = Field(default="", description="VCS URL with a commit, or archive URL with hashes; no credentials.")
    extras: tuple[str, ...] = ()
    marker: str = Field(default="", description="Environment marker (PEP 508); empty = always.")
    hashes: tuple[str, ...] = Field(default=(), description="Such as sha256:<hex>, sorted.")

    @property
    def requirement(self) -> str:
        """The pin as a line of a requirements file, without its hashes."""
        extras = f"[{','.join(self.extras)}]" if self.extras else ""
        what = f"{self.name}{extras} @ {self.url}" if self.url else f"{self.name}{extras}=={self.version}"
        return f"{what} ; {self.marker}" if self.marker else what


class EnvironmentLock(Record):
    """A lock file, parsed with everything it includes. ``digest`` is what the environment's key is made of."""

    file: str = Field(description="Path in the model repository, for messages.")
    format: LockFormat = "requirements"
    pins: tuple[Pin, ...] = Field(default=(), description="Sorted.")
    constraints: tuple[Pin, ...] = Field(default=(), description="Pins of packages only if something needs them.")
    options: tuple[str, ...] = Field(default=(), description="Options that decide what is installed, sorted.")
    require_hashes: bool = False
    python: str = Field(default="", description="Python version that the lock asks for, such as 3.12; empty = ours.")
    conda: tuple[str, ...] = Field(default=(), description="name=version[=build] of packages that conda installs.")
    channels: tuple[str, ...] = Field(default=(), description="Conda channels in order of priority.")
    notes: tuple[str, ...] = Field(default=(), description="What was read and left out, a sentence each.")

    @property
    def digest(self) -> Digest:
        """Digest of what the lock asks for: comments, order, spelling and file names do not change it."""
        body = self.model_dump(mode="json", exclude={"file", "format", "notes"})
        return digest_of(canonical_json(body))


class ResolvedPackage(Record):
    """One installed package."""

    version: str
    source: str = Field(default="", description="URL with commit or hash where it is not from an index.")


class ResolvedEnvironment(Record):
    """What a job really ran with, read from the interpreter that ran it."""

    packages: dict[str, ResolvedPackage] = Field(description="Normalised name -> what is installed.")
    python: str = Field(description="Such as CPython 3.11.9.")
    platform: str = Field(description="Such as linux-x86_64-glibc2.36.")
    hardware: dict[str, str] = Field(default_factory=dict, description="cpu, gpu, driver: as far as the machine says.")

    def body(self) -> dict[str, JsonValue]:
        """Return the record as JSON without its schema, for an event."""
        return {name: value for name, value in self.dump().items() if name != "schema"}


def canonical_name(name: str) -> str:
    """Return a package's normalised name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
