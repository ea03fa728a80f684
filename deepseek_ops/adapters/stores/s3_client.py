"""The obstore client of one bucket, and what its failures mean."""

from __future__ import annotations

import errno
import ipaddress
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    InvalidPathError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import S3Store as Client

from deepseek_ops.adapters.stores.keys import InvalidKeyError
from deepseek_ops.adapters.stores.uris import StoreUri, StoreUriError
from deepseek_ops.core.errors import (
    DeepSeekOpsError,
    ObjectExistsError,
    ObjectNotFoundError,
    StoreAccessError,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    from obstore.store import S3Credential

CONNECT_SECONDS = 3
READ_SECONDS = 20
"""Longest silence of a server in the middle of an answer."""
REQUEST_SECONDS = 600
RETRIES = 3
RETRY_SECONDS = 8
"""No retry begins later than this: a server that is down must show in about ten seconds, not in minutes."""

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,80})</Code>")
_ACCESS_STATUS = (301, 307, 400, 401, 403, 405)


def connect(uri: StoreUri, credentials: Mapping[str, str], *, with_prefix: bool = True) -> Client:
    """Return a client. Raises StoreUriError for an endpoint that is not a URL or is plain HTTP to another machine.

    Given keys go through a credential provider, so that no variable of this process (a stale session token, say) is
    mixed in, and so that the client's ``repr`` has no secret to show.
    """
    endpoint = credentials.get("AWS_ENDPOINT_URL", "")
    provider = _provider(uri, credentials)
    region = credentials.get("AWS_REGION", "us-east-1")
    return Client(
        uri.bucket,
        prefix=uri.prefix if with_prefix and uri.prefix else None,
        region=region,
        endpoint=_checked_endpoint(uri, endpoint) if endpoint else _aws_endpoint(uri.bucket, region),
        virtual_hosted_style_request=not endpoint and "." not in uri.bucket,
        checksum_algorithm="SHA256",
        conditional_put="etag",
        client_options={
            "allow_http": endpoint.startswith("http://"),
            "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
            "read_timeout": timedelta(seconds=READ_SECONDS),
            "timeout": timedelta(seconds=REQUEST_SECONDS),
        },
        retry_config={
            "max_retries": RETRIES,
            "retry_timeout": timedelta(seconds=RETRY_SECONDS),
            "backoff": {
                "init_backoff": timedelta(milliseconds=100),
                "max_backoff": timedelta(seconds=2),
                "base": 2,
            },
        },
        credential_provider=provider,
    )


def _aws_endpoint(bucket: str, region: str) -> str:
    """Amazon's own endpoint, spelt out: a variable of this process must not redirect explicit credentials."""
    return f"https://s3.{region}.amazonaws.com" if "." in bucket else f"https://{bucket}.s3.{region}.amazonaws.com"


def _checked_endpoint(uri: StoreUri, endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or "@" in parts.netloc:
        raise StoreUriError(str(uri), "has an AWS_ENDPOINT_URL that is no plain http(s) URL")
    if parts.scheme == "http" and not (uri.insecure or _loopback(parts.hostname)):
        raise StoreUriError(
            str(uri), f"would send data in clear to {parts.hostname}: use https, or s3+http:// if that is meant"
        )
    return endpoint.rstrip("/")


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _provider(uri: StoreUri, credentials: Mapping[str, str]) -> Callable[[], S3Credential] | None:
    key, secret = credentials.get("AWS_ACCESS_KEY_ID"), credentials.get("AWS_SECRET_ACCESS_KEY")
    if not key and not secret:
        if credentials.get("AWS_ENDPOINT_URL"):  # no role of this machine opens somebody's own server
            raise StoreAccessError(str(uri), "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set")
        return None
    if not key or not secret:
        missing = "AWS_SECRET_ACCESS_KEY" if key else "AWS_ACCESS_KEY_ID"
        raise StoreAccessError(str(uri), f"{missing} is not set")
    fixed: S3Credential = {
        "access_key_id": key,
        "secret_access_key": secret,
        "token": credentials.get("AWS_SESSION_TOKEN") or None,
        "expires_at": None,
    }
    return lambda: fixed


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
    if code == "NoSuchBucket":
        return StoreAccessError(store, "the bucket does not exist (NoSuchBucket)")
    if isinstance(error, InvalidPathError):
        return InvalidKeyError(key or store, "or a key below it is no valid object path")
    if isinstance(error, FileNotFoundError):
        return ObjectNotFoundError(where)
    if isinstance(error, AlreadyExistsError | PreconditionError):
        return ObjectExistsError(where)
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
        ("credential", "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("169.254.169.254", "no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
    ):
        if needle in lowered:
            return meaning
    return "the request failed"


def status_of(text: str) -> int | None:
    """Return the HTTP status an obstore message quotes, or None when there was no answer."""
    match = _STATUS.search(text)
    return int(match.group(1)) if match else None


def code_of(text: str) -> str:
    """Return the S3 error code an obstore message quotes, or an empty string."""
    match = _CODE.search(text)
    return match.group(1) if match else ""
