"""How a store is named: ``s3://bucket/prefix``, ``s3+http://``, ``gs://``, ``az://container/prefix``, ``file:///folder``
or a plain path, and ``memory://name`` for tests and examples.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, cast
from urllib.parse import unquote, urlsplit

from deepseek_ops.adapters.stores.keys import InvalidKeyError, checked_prefix
from deepseek_ops.core.errors import PermanentError

Kind = Literal["s3", "gs", "az", "file", "memory"]

_BUCKETS: Mapping[str, re.Pattern[str]] = {
    "s3": re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]"),
    "gs": re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]"),
    "az": re.compile(r"(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]"),
    "memory": re.compile(r"[a-z0-9][a-z0-9._-]{0,61}"),
}
_MEANT = {"s3a": "s3://", "s3n": "s3://", "gcs": "gs://", "azure": "az://", "abfs": "az://", "abfss": "az://"}


@dataclass(eq=False)
class StoreUriError(PermanentError):
    """A store URI that names no store."""

    uri: str
    problem: str

    def __str__(self) -> str:
        choice = "s3://bucket/prefix, gs://bucket/prefix, az://container/prefix, file:///folder or an absolute path"
        return f"store URI {self.uri!r} {self.problem}; write {choice}."


@dataclass(frozen=True, slots=True)
class StoreUri:
    """A parsed store URI."""

    kind: Kind
    bucket: str = ""
    prefix: str = ""
    """Without slashes at its ends."""
    folder: Path = Path()
    insecure: bool = False
    """Plain HTTP is wanted although the endpoint is not on this machine (``s3+http://``)."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the parts of a store URI. Raises StoreUriError; a URI with credentials is refused unread."""
        if text.startswith("/"):
            return cls("file", folder=Path(text))
        parts = urlsplit(text)
        if "@" in parts.netloc:
            raise StoreUriError(f"{parts.scheme}://...", "carries credentials, which belong into a connection")
        if parts.query or parts.fragment:
            raise StoreUriError(text, "has a query or a fragment")
        if parts.scheme == "file":
            if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
                raise StoreUriError(text, "is not an absolute path on this machine")
            return cls("file", folder=Path(unquote(parts.path)))
        insecure = parts.scheme == "s3+http"
        kind = "s3" if insecure else parts.scheme
        if kind not in _BUCKETS:
            meant = _MEANT.get(kind)
            raise StoreUriError(text, f"has the unknown scheme {kind!r}" + (f", {meant} is meant" if meant else ""))
        return cls._parse_bucket(cast("Kind", kind), text, parts.netloc, parts.path, insecure=insecure)

    @classmethod
    def _parse_bucket(cls, kind: Kind, text: str, bucket: str, path: str, *, insecure: bool) -> Self:
        if not _BUCKETS[kind].fullmatch(bucket):
            raise StoreUriError(text, f"names no valid {'container' if kind == 'az' else 'bucket'} ({bucket!r})")
        try:
            prefix = checked_prefix(path.strip("/"))
        except InvalidKeyError as error:
            raise StoreUriError(text, f"has a prefix that {error.problem}") from error
        return cls(kind, bucket=bucket, prefix=prefix, insecure=insecure)

    def __str__(self) -> str:
        if self.kind == "file":
            return self.folder.absolute().as_uri()
        scheme = "s3+http" if self.insecure else self.kind
        return f"{scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")
