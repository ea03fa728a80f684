"""How a store is named: ``s3://bucket/prefix``, ``s3+http://bucket/prefix``, ``file:///folder`` or a plain path."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self
from urllib.parse import unquote, urlsplit

from deepseek_ops.adapters.stores.keys import InvalidKeyError, checked_prefix
from deepseek_ops.core.errors import PermanentError

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


@dataclass(eq=False)
class StoreUriError(PermanentError):
    """A store URI that names no store."""

    uri: str
    problem: str

    def __str__(self) -> str:
        return f"store URI {self.uri!r} {self.problem}; write s3://bucket/prefix, file:///folder or an absolute path."


@dataclass(frozen=True, slots=True)
class StoreUri:
    """A parsed store URI."""

    kind: Literal["s3", "file"]
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
            raise StoreUriError(f"{parts.scheme}://...", "carries credentials, which belong into AWS_* variables")
        if parts.query or parts.fragment:
            raise StoreUriError(text, "has a query or a fragment")
        if parts.scheme == "file":
            if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
                raise StoreUriError(text, "is not an absolute path on this machine")
            return cls("file", folder=Path(unquote(parts.path)))
        if parts.scheme not in ("s3", "s3+http"):
            raise StoreUriError(text, f"has the unknown scheme {parts.scheme!r}")
        return cls._parse_s3(text, parts.netloc, parts.path, insecure=parts.scheme == "s3+http")

    @classmethod
    def _parse_s3(cls, text: str, bucket: str, path: str, *, insecure: bool) -> Self:
        if not _BUCKET.fullmatch(bucket):
            raise StoreUriError(text, f"names no valid bucket ({bucket!r})")
        try:
            prefix = checked_prefix(path.strip("/"))
        except InvalidKeyError as error:
            raise StoreUriError(text, f"has a prefix that {error.problem}") from error
        return cls("s3", bucket=bucket, prefix=prefix, insecure=insecure)

    def __str__(self) -> str:
        if self.kind == "file":
            return self.folder.absolute().as_uri()
        scheme = "s3+http" if self.insecure else "s3"
        return f"{scheme}://{self.bucket}" + (f"/{self.prefix}" if self.prefix else "")
