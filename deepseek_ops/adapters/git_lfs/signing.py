"""Signed texts: what the server said earlier and can believe again, because only it knows the secret.

A text is ``<purpose>.<payload>.<mac>``. Each purpose has a key of its own, derived from the server's secret, so a
short-lived link can never pass for a token. Several secrets may be given: the first signs, all are believed, and that
is how a secret is replaced without refusing everybody at once.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue

from deepseek_ops.adapters.git_lfs.problems import TokenRefusedError
from deepseek_ops.core.errors import LocalDiskError, PermanentError
from deepseek_ops.core.records import canonical_json

SECRET_VARIABLE = "DEEPSEEK_OPS_LFS_SECRET"  # noqa: S105  (the variable's name)
MIN_SECRET_CHARACTERS = 32
MAX_TEXT = 4096


@dataclass(eq=False)
class ServerSecretError(PermanentError):
    """The secret of the LFS server is missing, too short, or readable by others."""

    source: str
    problem: str

    def __str__(self) -> str:
        return (
            f"secret of the LFS server ({self.source}) {self.problem}; make one with: "
            "deepseek-ops lfs secret --secret-file FILE"
        )


def read_secrets(file: Path | None, environment: Mapping[str, str]) -> list[bytes]:
    """Return the secrets of a file (one a line) or of the environment, the signing one first.

    Raises ServerSecretError: a secret that others can read, or guess, protects nothing.
    """
    if file is None:
        text, source = environment.get(SECRET_VARIABLE, ""), f"${SECRET_VARIABLE}"
    else:
        text, source = _read_private(file), str(file)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        raise ServerSecretError(source, "is empty")
    if any(len(line) < MIN_SECRET_CHARACTERS for line in lines):
        raise ServerSecretError(source, f"is shorter than {MIN_SECRET_CHARACTERS} characters")
    return [line.encode() for line in lines]


def write_secret(file: Path) -> None:
    """Make a file with a fresh secret that only its owner can read. Raises LocalDiskError when it exists."""
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "w") as stream:
            stream.write(secrets.token_urlsafe(48) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
    except OSError as error:
        raise LocalDiskError(str(file), error.strerror or str(error)) from error


def _read_private(file: Path) -> str:
    try:
        with file.open(encoding="utf-8") as stream:
            if stat.S_IMODE(os.fstat(stream.fileno()).st_mode) & 0o077:
                raise ServerSecretError(str(file), "can be read by other users (chmod 600 it)")
            return stream.read(1 << 16)
    except (OSError, UnicodeDecodeError) as error:
        raise ServerSecretError(str(file), f"cannot be read ({type(error).__name__})") from error


class Signer:
    """Signs and reads texts of one purpose, such as ``dsotoken``."""

    def __init__(self, server_secrets: Sequence[bytes], purpose: str) -> None:
        self._purpose = purpose
        self._keys = [
            hmac.digest(secret, f"deepseek-ops lfs {purpose}".encode(), "sha256") for secret in server_secrets
        ]

    def __repr__(self) -> str:
        return f"Signer({self._purpose!r})"

    def sign(self, payload: Mapping[str, JsonValue]) -> str:
        """Return the payload, readable by everybody and changeable by nobody."""
        body = _encode(canonical_json(dict(payload)))
        return f"{self._purpose}.{body}.{self._mac(self._keys[0], body)}"

    def read(self, text: str) -> dict[str, JsonValue]:
        """Return the payload. Raises TokenRefusedError for anything that ``sign`` did not make."""
        purpose, _, rest = text.partition(".")
        body, _, mac = rest.partition(".")
        known = False
        for key in self._keys:  # all of them, whichever fits: the time taken tells nothing
            known |= hmac.compare_digest(self._mac(key, body).encode(), mac.encode("utf-8", "replace"))
        if len(text) > MAX_TEXT or purpose != self._purpose or not known:
            raise TokenRefusedError(self._noun, "is not one of this server")
        try:
            payload = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
        except (binascii.Error, ValueError):
            raise TokenRefusedError(self._noun, "is not one of this server") from None
        return dict(payload)

    @property
    def _noun(self) -> str:
        return "token" if self._purpose.endswith("token") else "link"

    @staticmethod
    def _mac(key: bytes, body: str) -> str:
        return _encode(hmac.new(key, body.encode("utf-8", "replace"), hashlib.sha256).digest())


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
