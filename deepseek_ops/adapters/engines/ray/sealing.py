"""Secrets on their way through a Ray cluster: sealed with a key that the cluster's nodes have and its API has not.

Ray's Jobs API takes text and shows all of it again: ``runtime_env`` (environment variables with it), ``metadata`` and
``entrypoint`` come back from ``GET /api/jobs/`` to everybody who can reach the dashboard, and its web page hides them
from browsers only. So what we send is AES-256-GCM (RFC 5116), bound to the id of the job: the text of one job does not
open as another's. The key is made from a passphrase of the operator's, by scrypt (RFC 7914), which is in the
environment of every node of the cluster and in the connection; anybody who may run code on the cluster can read it
there, and could read the secrets of a job that runs there anyway.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from deepseek_ops.adapters.engines.ray.errors import SealBrokenError
from deepseek_ops.core.errors import MissingDependencyError

KEY_VARIABLE = "DEEPSEEK_OPS_SEAL_KEY"
"""Variable of every node of the cluster that holds the passphrase; ``KEY_VARIABLE + "_FILE"`` may name a file."""
MIN_KEY_LENGTH = 16
_SALT_BYTES = 16
_NONCE_BYTES = 12


def seal(secrets: Mapping[str, str], passphrase: str, *, job: str) -> str:
    """Return the secrets as text that only the passphrase opens, and only as those of ``job``. New text every time."""
    salt, nonce = os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
    plain = json.dumps(dict(secrets)).encode()
    return base64.b64encode(salt + nonce + _cipher(passphrase, salt).encrypt(nonce, plain, job.encode())).decode()


def unseal(sealed: str, environment: Mapping[str, str], *, job: str) -> dict[str, str]:
    """Return the secrets that were sealed for ``job``, with the passphrase of this node. Raises SealBrokenError."""
    from cryptography.exceptions import InvalidTag

    passphrase = node_passphrase(environment)
    if not passphrase:
        raise SealBrokenError(job, f"{KEY_VARIABLE} is not set on this node; start its Ray with the connection's key")
    try:
        raw = base64.b64decode(sealed, validate=True)
        salt, nonce, text = raw[:_SALT_BYTES], raw[_SALT_BYTES:][:_NONCE_BYTES], raw[_SALT_BYTES + _NONCE_BYTES :]
        body = json.loads(_cipher(passphrase, salt).decrypt(nonce, text, job.encode()))
    except (InvalidTag, ValueError):
        problem = f"they were sealed with another key than this node's {KEY_VARIABLE}, or for another job"
        raise SealBrokenError(job, problem) from None
    return {str(name): str(value) for name, value in body.items()}


def node_passphrase(environment: Mapping[str, str]) -> str:
    """Return the passphrase of this node, or "" where it has none. Raises SealBrokenError for an unreadable file."""
    path = environment.get(f"{KEY_VARIABLE}_FILE", "")
    if not path:
        return environment.get(KEY_VARIABLE, "")
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise SealBrokenError("of this node", f"{KEY_VARIABLE}_FILE={path}: {error.strerror}") from error


@cache
def _key(passphrase: str, salt: bytes) -> bytes:
    return hashlib.scrypt(passphrase.encode(), salt=salt, n=2**14, r=8, p=1, dklen=32)  # 16 MiB, 50 ms


def _cipher(passphrase: str, salt: bytes):  # type: ignore[no-untyped-def]  # its type is of an optional package
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError as error:
        raise MissingDependencyError("cryptography", "ray", "sealing the secrets of a job for a Ray cluster") from error
    return AESGCM(_key(passphrase, salt))
