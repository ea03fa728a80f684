"""Who sent a webhook: the signatures of GitHub, GitLab and Gitea (and Forgejo), checked while the body arrives.

========  ==============================  =====================================  ======================================
Host      Header                          What it proves                         What makes a delivery known again
========  ==============================  =====================================  ======================================
github    ``X-Hub-Signature-256``         HMAC-SHA256 of the body                digest of the body
gitea     ``X-Gitea-Signature``           HMAC-SHA256 of the body                digest of the body
gitlab    ``webhook-signature``           HMAC-SHA256 of id, time and body       the signed id; too old after 5 minutes
gitlab    ``X-Gitlab-Token``              that the sender has the secret         event id and digest of the body
========  ==============================  =====================================  ======================================

The delivery ids of GitHub and Gitea are not signed: whoever replays a delivery can change them, so the body counts.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Protocol

TOLERANCE_SECONDS = 300
"""How far the time in a signed delivery may be from ours, either way."""
HOSTS = ("github", "gitlab", "gitea")
PUSHES = {
    "github": ("push", "create", "delete"),
    "gitea": ("push", "create", "delete"),
    "gitlab": ("Push Hook", "Tag Push Hook", "System Hook"),
}
EVENT_HEADERS = {"github": "x-github-event", "gitea": "x-gitea-event", "gitlab": "x-gitlab-event"}


class Proof(Protocol):
    """One delivery being checked: bytes go in as they come, the answer is there at the end."""

    def add(self, piece: bytes) -> None:
        """Take the next bytes of the body."""

    def delivery(self) -> str | None:
        """Return the delivery's identity when one of the secrets signed it, else None."""


def proof_of(host: str, headers: Mapping[str, str], secrets: Sequence[str], now: float) -> Proof:
    """Return what checks a delivery of ``host`` (one of HOSTS; header names in lower case)."""
    if host == "gitlab" and "webhook-signature" in headers:
        return _Standard(headers, secrets, now)
    if host == "gitlab":
        return _Token(headers, secrets)
    shown = headers.get("x-hub-signature-256" if host == "github" else "x-gitea-signature", "")
    return _BodyHmac(shown.removeprefix("sha256=") if host == "github" else shown, secrets)


class _BodyHmac:
    def __init__(self, shown: str, secrets: Sequence[str]) -> None:
        self._shown = shown.lower().encode()
        self._sums = [hmac.new(secret.encode(), digestmod=hashlib.sha256) for secret in secrets]
        self._body = hashlib.sha256()

    def add(self, piece: bytes) -> None:
        self._body.update(piece)
        for code in self._sums:
            code.update(piece)

    def delivery(self) -> str | None:
        signed = [hmac.compare_digest(code.hexdigest().encode(), self._shown) for code in self._sums]
        return self._body.hexdigest()[:32] if any(signed) else None


class _Standard:
    """The form of the Standard Webhooks specification, which GitLab's signing token uses."""

    def __init__(self, headers: Mapping[str, str], secrets: Sequence[str], now: float) -> None:
        self._id, stamp = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
        self._fresh = stamp.isascii() and stamp.isdecimal() and len(stamp) < 16
        self._fresh = self._fresh and abs(now - int(stamp)) <= TOLERANCE_SECONDS
        shown = headers["webhook-signature"].split()[:8]
        self._shown = [entry.removeprefix("v1,").encode() for entry in shown if entry.startswith("v1,")]
        head = f"{self._id}.{stamp}.".encode()
        self._sums = [hmac.new(_key(secret), head, hashlib.sha256) for secret in secrets]

    def add(self, piece: bytes) -> None:
        for code in self._sums:
            code.update(piece)

    def delivery(self) -> str | None:
        made = [base64.b64encode(code.digest()) for code in self._sums]
        signed = [hmac.compare_digest(code, shown) for code in made for shown in self._shown]
        return _identity(self._id) if any(signed) and self._fresh and self._id else None


class _Token:
    def __init__(self, headers: Mapping[str, str], secrets: Sequence[str]) -> None:
        shown = headers.get("x-gitlab-token", "").encode()
        same = [hmac.compare_digest(secret.encode(), shown) for secret in secrets]
        self._known = any(same)
        event = headers.get("x-gitlab-event-uuid", "") or headers.get("idempotency-key", "")
        self._body = hashlib.sha256(f"{event}\n".encode())

    def add(self, piece: bytes) -> None:
        self._body.update(piece)

    def delivery(self) -> str | None:
        return self._body.hexdigest()[:32] if self._known else None


def _key(secret: str) -> bytes:
    """Return the key of a signing token: base64 behind ``whsec_``, the text itself otherwise."""
    if secret.startswith("whsec_"):
        try:
            return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except binascii.Error:
            pass
    return secret.encode()


def _identity(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]
