"""The LFS server as a process: uvicorn on one address, ended by SIGTERM when running transfers are through."""

from __future__ import annotations

import ipaddress
import logging
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deepseek_ops.core.errors import PermanentError

if TYPE_CHECKING:
    from fastapi import FastAPI

GRACE_SECONDS = 30
MAX_CONNECTIONS = 256
KEEP_ALIVE_SECONDS = 15


@dataclass(eq=False)
class InsecureAddressError(PermanentError):
    """Tokens would travel in clear over a network."""

    host: str

    def __str__(self) -> str:
        return (
            f"serving on {self.host} without TLS would send tokens in clear: give --tls-cert and --tls-key, "
            "or --allow-plain-http behind a proxy that ends TLS on this machine's network."
        )


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen. Without a certificate only this machine can connect, unless ``allow_plain`` says otherwise."""

    host: str = "127.0.0.1"
    port: int = 8700
    certificate: Path | None = None
    key: Path | None = None
    allow_plain: bool = False

    def checked(self) -> Address:
        """Return the address. Raises InsecureAddressError."""
        if self.certificate is None and not self.allow_plain and not _loopback(self.host):
            raise InsecureAddressError(self.host)
        return self


def run_server(app: FastAPI, address: Address) -> None:
    """Serve until SIGTERM or SIGINT; running transfers get ``GRACE_SECONDS`` to end. Raises InsecureAddressError.

    uvicorn's own access log stays off: ours has no query and no header in it.
    """
    import uvicorn

    address.checked()
    logging.getLogger("deepseek_ops.lfs").setLevel(logging.INFO)
    # uvicorn ends gracefully and then raises the signal again: an end that was asked for is no failure.
    signal.signal(signal.SIGTERM, lambda _number, _frame: sys.exit(0))
    uvicorn.run(
        app,
        host=address.host,
        port=address.port,
        ssl_certfile=str(address.certificate) if address.certificate else None,
        ssl_keyfile=str(address.key) if address.key else None,
        access_log=False,
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
