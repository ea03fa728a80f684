"""The obstore client of one S3 bucket."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from obstore.store import S3Store as Client

from deepseek_ops.adapters.stores.clients import (
    CONNECT_SECONDS,
    READ_SECONDS,
    checked_endpoint,
    client_options,
    retry_config,
)
from deepseek_ops.adapters.stores.s3_requests import S3Place
from deepseek_ops.adapters.stores.uris import StoreUri
from deepseek_ops.core.errors import StoreAccessError

if TYPE_CHECKING:
    from obstore.store import S3Credential

__all__ = ["CONNECT_SECONDS", "READ_SECONDS", "connect", "signing_place"]


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
        endpoint=checked_endpoint(uri, "AWS_ENDPOINT_URL", endpoint) if endpoint else _aws_endpoint(uri.bucket, region),
        virtual_hosted_style_request=not endpoint and "." not in uri.bucket,
        checksum_algorithm="SHA256",
        conditional_put="etag",
        client_options=client_options(endpoint),
        retry_config=retry_config(),
        credential_provider=provider,
    )


def signing_place(uri: StoreUri, credentials: Mapping[str, str]) -> S3Place | None:
    """Return where and with which keys requests are signed by us; None when only the machine's own role is known."""
    key, secret = credentials.get("AWS_ACCESS_KEY_ID"), credentials.get("AWS_SECRET_ACCESS_KEY")
    if not key or not secret:
        return None
    endpoint = credentials.get("AWS_ENDPOINT_URL", "")
    region = credentials.get("AWS_REGION", "us-east-1")
    base = checked_endpoint(uri, "AWS_ENDPOINT_URL", endpoint) if endpoint else _aws_endpoint(uri.bucket, region)
    in_host = not endpoint and "." not in uri.bucket
    return S3Place(
        base if in_host else f"{base}/{uri.bucket}", region, key, secret, credentials.get("AWS_SESSION_TOKEN", "")
    )


def _aws_endpoint(bucket: str, region: str) -> str:
    """Amazon's own endpoint, spelt out: a variable of this process must not redirect explicit credentials."""
    return f"https://s3.{region}.amazonaws.com" if "." in bucket else f"https://{bucket}.s3.{region}.amazonaws.com"


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
