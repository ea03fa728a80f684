"""Tokens of the LFS server: bound to one repository, to reading or writing, with an end, revocable, on record.

A token proves itself by its signature, so a check needs no database. The store keeps two notes a token: that it was
issued (who, what for, until when; never the token) and, when it was taken back, that it is revoked. Both are
create-only; a server believes its last look for ``REVOCATION_SECONDS``.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, ValidationError

from deepseek_ops.adapters.git_lfs.problems import TokenRefusedError
from deepseek_ops.adapters.git_lfs.signing import Signer
from deepseek_ops.core.errors import ObjectExistsError, ObjectNotFoundError, PermanentError
from deepseek_ops.core.ports import ObjectStore
from deepseek_ops.core.records import Record, canonical_json

Access = Literal["read", "write"]
Subject = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@+-]{0,99}$")]
"""Who a token stands for: a user, an e-mail address, a machine. Owner of the locks it takes."""

ISSUED = "lfs/tokens/"
REVOKED = "lfs/revoked/"
MAX_DAYS = 366
MAX_SEGMENTS = 5
REVOCATION_SECONDS = 5.0
DAY_SECONDS = 86_400

_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TOKEN_ID = re.compile(r"[0-9a-f]{16}")


@dataclass(eq=False)
class RepositoryNameError(PermanentError):
    """A name that cannot be a repository of the LFS server."""

    name: str

    def __str__(self) -> str:
        return (
            f"repository name {self.name!r} is not allowed; write up to {MAX_SEGMENTS} segments of letters, digits, "
            "'.', '_' and '-' joined by '/', such as team/model."
        )


@dataclass(eq=False)
class UnknownTokenError(PermanentError):
    """No token of this id was issued."""

    token_id: str

    def __str__(self) -> str:
        return f"no token {self.token_id!r} was issued for this store; see: deepseek-ops lfs token list"


def repository_name(text: str) -> str:
    """Return the plain name of a repository: ``team/model`` for ``/team/model.git/info/lfs``, as clients write it.

    Raises RepositoryNameError for what cannot be part of an object key: ``..``, NUL, empty segments and the like.
    """
    name = text.strip("/").removesuffix("/info/lfs").removesuffix(".git")
    segments = name.split("/")
    if len(segments) > MAX_SEGMENTS or not all(_SEGMENT.fullmatch(segment) for segment in segments):
        raise RepositoryNameError(text[:200])
    if any(segment.endswith(".") or ".." in segment for segment in segments):
        raise RepositoryNameError(text[:200])
    return name


class Grant(Record):
    """What one token allows."""

    id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
    repository: str
    access: Access
    subject: Subject
    expires: int = Field(description="Unix seconds.")

    @property
    def may_write(self) -> bool:
        return self.access == "write"


class TokenBook:
    """Issues, checks and revokes tokens. Safe for use by many threads."""

    def __init__(
        self, store: ObjectStore, server_secrets: Sequence[bytes], *, now: Callable[[], float] = time.time
    ) -> None:
        self._store = store
        self._signer = Signer(server_secrets, "dsotoken")
        self._now = now
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[float, bool]] = {}

    def issue(self, repository: str, access: Access, subject: str, *, days: float) -> tuple[str, Grant]:
        """Return a new token and what it allows. Raises RepositoryNameError, TokenRefusedError for a bad term."""
        if not 0 < days <= MAX_DAYS:
            raise TokenRefusedError("token", f"cannot be valid for {days:g} days: more than 0, at most {MAX_DAYS}")
        try:
            grant = Grant(
                id=secrets.token_hex(8),
                repository=repository_name(repository),
                access=access,
                subject=subject,
                expires=int(self._now() + days * DAY_SECONDS),
            )
        except ValidationError as error:
            first = error.errors()[0]
            raise TokenRefusedError("token", f"cannot have {first['loc'][0]}={first['input']!r}") from None
        self._store.create(f"{ISSUED}{grant.id}.json", canonical_json({**grant.dump(), "issued": int(self._now())}))
        return self._signer.sign(grant.dump()), grant

    def check(self, token: str) -> Grant:
        """Return what the token allows. Raises TokenRefusedError when it is not ours, expired or revoked."""
        payload = self._signer.read(token)
        try:
            grant = Grant.load(payload)
        except PermanentError:
            raise TokenRefusedError("token", "is of another version of this server") from None
        if grant.expires <= self._now():
            raise TokenRefusedError("token", "has expired")
        if self.revoked(grant.id):
            raise TokenRefusedError("token", "was revoked")
        return grant

    def revoked(self, token_id: str) -> bool:
        """Return whether the token was taken back; asks the store at most every ``REVOCATION_SECONDS``."""
        now = self._now()
        with self._lock:
            when, answer = self._seen.get(token_id, (float("-inf"), False))
        if answer or now - when < REVOCATION_SECONDS:
            return answer
        answer = self._store.head(f"{REVOKED}{token_id}.json") is not None
        with self._lock:
            if len(self._seen) > 10_000:
                self._seen.clear()
            self._seen[token_id] = (now, answer)
        return answer

    def revoke(self, token_id: str, *, by: str, reason: str = "") -> None:
        """Take a token back; doing it twice is no error. Raises UnknownTokenError."""
        if not _TOKEN_ID.fullmatch(token_id) or self._store.head(f"{ISSUED}{token_id}.json") is None:
            raise UnknownTokenError(token_id[:100])
        note = canonical_json({"by": by, "reason": reason, "revoked": int(self._now())})
        with suppress(ObjectExistsError):
            self._store.create(f"{REVOKED}{token_id}.json", note)
        with self._lock:
            self._seen[token_id] = (self._now(), True)

    def issued(self) -> list[tuple[Grant, bool]]:
        """Return every token that was issued with whether it is revoked, the one that ends last first."""
        revoked = {info.key.removeprefix(REVOKED).removesuffix(".json") for info in self._store.list(REVOKED)}
        grants = [self._grant(info.key) for info in self._store.list(ISSUED)]
        found = [(grant, grant.id in revoked) for grant in grants if grant is not None]
        return sorted(found, key=lambda pair: pair[0].expires, reverse=True)

    def _grant(self, key: str) -> Grant | None:
        try:
            body = json.loads(self._store.get(key))
        except ObjectNotFoundError:
            return None
        return Grant.load({name: value for name, value in body.items() if name != "issued"})
