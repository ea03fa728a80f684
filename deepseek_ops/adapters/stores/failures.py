"""What an obstore failure means for an object of a store, in the errors the port names."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)

from deepseek_ops.adapters.stores.keys import InvalidKeyError
from deepseek_ops.adapters.stores.pace import BUSY_STATUS
from deepseek_ops.core.errors import (
    DeepSeekOpsError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreAccessError,
    StoreUnavailableError,
)

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,80})</Code>")
_ACCESS_STATUS = (301, 307, 400, 401, 403, 405)
_NO_BUCKET = ("NoSuchBucket", "ContainerNotFound")
TRANSIENT_CODES = (
    "BadDigest",
    "MalformedXML",
    "RequestTimeout",
    "IncompleteBody",
    "XAmzContentSHA256Mismatch",
    "Md5Mismatch",
)
"""Refusals of bytes that were damaged or cut on their way: sending them again can help."""
_LOST = ("connection reset", "the connection ended early")
_CUT = ("request or response body error", "error decoding response body", "end of file before message length")
"""What obstore says of an answer that began and was not finished."""


@contextmanager
def translated(store: str, key: str) -> Iterator[None]:
    """Turn obstore's errors inside the block into those the port names; the new message has no header and no key."""
    try:
        yield
    except (BaseError, OSError, ValueError) as error:
        raise explained(error, store, key) from error


def explained(error: Exception, store: str, key: str) -> DeepSeekOpsError:
    """Return what an obstore error means for the object ``key`` of ``store``."""
    text = str(error)
    status, code = status_of(text), code_of(text)
    where = f"{store}/{key}" if key else store
    if code in _NO_BUCKET:
        return StoreAccessError(store, f"the bucket does not exist ({code})")
    if isinstance(error, InvalidPathError):
        return InvalidKeyError(key or store, "or a key below it is no valid object path")
    if isinstance(error, FileNotFoundError):
        return ObjectNotFoundError(where)
    if isinstance(error, AlreadyExistsError | PreconditionError):
        return ObjectExistsError(where)
    if code in TRANSIENT_CODES:
        return StoreUnavailableError(store, f"HTTP {status} {code}: the bytes were damaged on their way")
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or status in _ACCESS_STATUS:
        return StoreAccessError(store, f"HTTP {status or 403} {code}".rstrip())
    return StoreUnavailableError(store, f"HTTP {status} {code}".rstrip() if status else _transport(text))


def _transport(text: str) -> str:
    lowered = text.lower()
    for needle, meaning in (
        ("connection refused", "connection refused"),
        (f"os error {errno.ECONNREFUSED}", "connection refused"),
        ("dns error", "the host name cannot be resolved"),
        ("timedout", "no answer in time"),
        ("timed out", "no answer in time"),
        ("certificate", "the server's certificate is not trusted"),
        ("connection reset", "connection reset"),
        ("incompletemessage", "the connection ended early"),
        ("unexpected eof", "the connection ended early"),
        ("broken pipe", "the connection ended early"),
        ("connection closed", "the connection ended early"),
        ("credential", "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("169.254.169.254", "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    ):
        if needle in lowered:
            return meaning
    return "the request failed"


def is_busy(error: Exception) -> bool:
    """Return whether the server asks for fewer requests."""
    return status_of(str(error)) in BUSY_STATUS


def is_damaged(error: Exception) -> bool:
    """Return whether the request or its answer was damaged, cut or lost on its way. It may have been carried out."""
    text = str(error)
    lost = status_of(text) is None and _transport(text) in _LOST
    return lost or code_of(text) in TRANSIENT_CODES or any(sign in text.lower() for sign in _CUT)


def status_of(text: str) -> int | None:
    """Return the HTTP status an obstore message quotes, or None when there was no answer."""
    match = _STATUS.search(text)
    return int(match.group(1)) if match else None


def code_of(text: str) -> str:
    """Return the S3 error code an obstore message quotes, or an empty string."""
    match = _CODE.search(text)
    return match.group(1) if match else ""
