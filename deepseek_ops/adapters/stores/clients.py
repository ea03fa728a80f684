"""What every obstore client here is told about endpoints, silence and trying again."""

from __future__ import annotations

import ipaddress
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from deepseek_ops.adapters.stores.uris import StoreUri, StoreUriError

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

CONNECT_SECONDS = 3
READ_SECONDS = 20
"""Longest silence of a server in the middle of an answer."""
REQUEST_SECONDS = 600
RETRIES = 3
RETRY_SECONDS = 8
"""No retry begins later than this: a server that is down must show in about ten seconds, not in minutes."""


def client_options(endpoint: str) -> ClientConfig:
    """Return timeouts, and leave to use plain HTTP where the (checked) endpoint says so."""
    return {
        "allow_http": endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=CONNECT_SECONDS),
        "read_timeout": timedelta(seconds=READ_SECONDS),
        "timeout": timedelta(seconds=REQUEST_SECONDS),
    }


def retry_config() -> RetryConfig:
    """Return how obstore tries again: a few times, with growing pauses of random length, within seconds."""
    return {
        "max_retries": RETRIES,
        "retry_timeout": timedelta(seconds=RETRY_SECONDS),
        "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=2), "base": 2},
    }


def checked_endpoint(uri: StoreUri, variable: str, endpoint: str) -> str:
    """Return the URL without a slash at its end. Raises StoreUriError when it is none, or plain HTTP to elsewhere."""
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or "@" in parts.netloc:
        raise StoreUriError(str(uri), f"has an {variable} that is no plain http(s) URL")
    if parts.scheme == "http" and not (uri.insecure or is_loopback(parts.hostname)):
        remedy = "use https, or s3+http:// if that is meant" if uri.kind == "s3" else "use https"
        raise StoreUriError(str(uri), f"would send data in clear to {parts.hostname}: {remedy}")
    return endpoint.rstrip("/")


def is_loopback(host: str) -> bool:
    """Return whether a host name or address is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
