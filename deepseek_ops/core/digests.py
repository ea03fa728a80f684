"""Canonical bytes and their SHA-256: what every identity here is made of. Builds no record, so it costs nothing."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated

from pydantic import JsonValue, StringConstraints

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
"""SHA-256 in lower-case hex, the id of bytes everywhere: Git LFS oid, S3 checksum and object key agree on it."""


def canonical_json(value: JsonValue) -> bytes:
    """Return ``value`` as UTF-8 JSON with sorted keys and no spaces: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def digest_of(data: bytes) -> Digest:
    """Return the SHA-256 of ``data`` in hex."""
    return hashlib.sha256(data).hexdigest()
