"""Which keys a store accepts: those that mean the same object in a bucket and in a folder."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deepseek_ops.core.errors import IntegrityError, PermanentError

if TYPE_CHECKING:
    from deepseek_ops.core.records import Digest

MAX_KEY_BYTES = 1024
"""S3's limit, in UTF-8."""
MAX_SEGMENT_BYTES = 255
"""A file name's limit on the file systems we know."""
RESERVED = ".tmp"
"""First segment of LocalStore's unfinished files."""

_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(eq=False)
class InvalidKeyError(PermanentError):
    """A key would leave the store, or cannot be both an object and a file."""

    key: str
    problem: str

    def __str__(self) -> str:
        return f"object key {self.key!r} {self.problem}; use plain relative segments joined by '/'."


def checked_key(key: str) -> str:
    """Return ``key`` as it is. Raises InvalidKeyError when it is empty, absolute, climbs, or is too long."""
    checked_prefix(key)
    if not key or key.endswith("/"):
        raise InvalidKeyError(key, "names no object")
    return key


def checked_prefix(prefix: str) -> str:
    """Return ``prefix`` as it is: the beginning of a valid key, or empty."""
    if any(ord(char) < 0x20 or ord(char) == 0x7F for char in prefix) or "\\" in prefix:
        raise InvalidKeyError(prefix, "holds a control character or a backslash")
    segments = prefix.removesuffix("/").split("/") if prefix else []
    if any(segment in ("", ".", "..") for segment in segments):
        raise InvalidKeyError(prefix, "has an empty, '.' or '..' segment")
    if segments and segments[0] == RESERVED:
        raise InvalidKeyError(prefix, f"begins with the reserved {RESERVED}")
    try:
        sizes = [len(segment.encode()) for segment in segments]
    except UnicodeEncodeError:
        raise InvalidKeyError(prefix, "is not valid Unicode") from None
    if sum(sizes) + len(sizes) - 1 > MAX_KEY_BYTES or any(size > MAX_SEGMENT_BYTES for size in sizes):
        raise InvalidKeyError(prefix, f"is longer than {MAX_KEY_BYTES} bytes, or a segment than {MAX_SEGMENT_BYTES}")
    return prefix


def named_digest(key: str) -> Digest | None:
    """Return the SHA-256 a content-addressed key ends with, or None."""
    name = key.rpartition("/")[2]
    return name if _DIGEST.fullmatch(name) else None


class NamedDigestCheck:
    """Hashes what is sent under a content-addressed key: a file that changes meanwhile must not take its old name."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._expected = named_digest(key)
        self._hash = hashlib.sha256()

    def update(self, data: bytes | memoryview) -> None:
        if self._expected is not None:
            self._hash.update(data)

    def finish(self) -> None:
        """Raise IntegrityError when the bytes seen do not have the digest in the key."""
        if self._expected is not None and self._hash.hexdigest() != self._expected:
            raise IntegrityError(f"source of {self._key}", self._expected, self._hash.hexdigest())
