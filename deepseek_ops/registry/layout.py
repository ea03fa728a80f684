"""Version numbers and object keys below the registry's prefix."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from deepseek_ops.core.errors import InvalidRecordError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import Digest, SemVer

Bump = Literal["major", "minor", "patch"]
SEQUENCES = 10**12
"""More entries than an alias log will ever have; sets the width of its keys."""
CLAIMS = "versions/"
ALIASES = "aliases/"


def next_version(existing: Iterable[str], bump: Bump = "minor") -> SemVer:
    """Return the number after the highest of ``existing``; the first one is 0.1.0 (1.0.0 for a major bump).

    Raises InvalidRecordError for text that is no version number.
    """
    major, minor, patch = max(map(parts_of, existing), default=(0, 0, 0))
    if bump == "major":
        return f"{major + 1}.0.0"
    return f"{major}.{minor + 1}.0" if bump == "minor" else f"{major}.{minor}.{patch + 1}"


def parts_of(version: str) -> tuple[int, int, int]:
    """Return the three numbers of ``1.2.0`` or ``v1.2.0``, which sort as versions do. Raises InvalidRecordError."""
    numbers = version.removeprefix("v").split(".")
    if len(numbers) != 3 or not all(number.isascii() and number.isdigit() for number in numbers):
        raise InvalidRecordError("SemVer", f"{version!r} is not three numbers such as 1.2.0")
    major, minor, patch = map(int, numbers)
    return major, minor, patch


def plain_version(version: str) -> SemVer:
    """Return the number without ``v`` and leading zeros. Raises InvalidRecordError."""
    return ".".join(map(str, parts_of(version)))


def folder_key(version: str) -> str:
    """Return the prefix of everything that belongs to a version, with its slash."""
    return f"v{version}/"


def bundle_key(version: str) -> str:
    return f"v{version}/bundle.json"


def claim_key(version: str) -> str:
    """Return the key that whoever wants the number creates: the bundle it is going to publish."""
    return f"{CLAIMS}v{version}.json"


def identity_key(identity: Digest) -> str:
    """Return the key that says which version a run became."""
    return f"identities/{identity}.json"


def alias_prefix(name: str, alias: str) -> str:
    return f"{ALIASES}{name}/{alias}/"


def alias_key(name: str, alias: str, sequence: int) -> str:
    """Return the key of an entry. The sequence is inverted, so the first key of a listing is the newest entry."""
    return f"{alias_prefix(name, alias)}{SEQUENCES - 1 - sequence:012d}.json"


def claimed_versions(store: ObjectStore) -> list[SemVer]:
    """Return every number that was ever taken, lowest first, committed or not."""
    names = (info.key.removeprefix(CLAIMS).removesuffix(".json") for info in store.list(CLAIMS))
    return sorted((plain_version(name) for name in names), key=parts_of)


def alias_names(store: ObjectStore) -> list[tuple[str, str]]:
    """Return (model, alias) of every alias log, jumping over the entries."""
    found: list[tuple[str, str]] = []
    after = ""
    while info := next(store.list(ALIASES, start_after=after, limit=1), None):
        name, _, rest = info.key.removeprefix(ALIASES).partition("/")
        found.append((name, rest.partition("/")[0]))
        after = alias_prefix(*found[-1]) + "~"  # greater than every entry's digits
    return found
