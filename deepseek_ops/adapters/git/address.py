"""Where a repository is: one parsed address, never with a credential in what is shown, stored or passed on."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import unquote, urlsplit

from deepseek_ops.adapters.git.errors import RepositoryAddressError

Transport = Literal["https", "http", "ssh", "file"]

_SCP = re.compile(r"^(?P<user>[A-Za-z0-9._][A-Za-z0-9._-]*)@(?P<host>[A-Za-z0-9][A-Za-z0-9.-]*):(?P<path>[^:].*)$")
_FORBIDDEN = re.compile(r"[\x00-\x20\x7f]")


@dataclass(frozen=True, slots=True)
class Address:
    """A repository's address. ``url`` carries no credentials (an ssh user name is none)."""

    url: str
    transport: Transport
    host: str = ""
    port: int = 0
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    """What stood in the URL before the ``@``; passed on by other ways only."""

    @property
    def origin(self) -> str:
        """``scheme://host[:port]``, the scope a credential is offered to."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}"


def parse_address(url: str) -> Address:
    """Return the address of a repository. Raises RepositoryAddressError for anything that git could take for a command.

    ``ext::``, ``fd::`` and other helper transports run programs, ``git://`` can be changed on the way, and a leading
    ``-`` is an option: none of them is an address here.
    """
    shown = re.sub(r"//[^/@]*@", "//***@", url)
    if not url or _FORBIDDEN.search(url) or url.startswith("-"):
        raise RepositoryAddressError(shown, "is empty, begins with '-' or holds spaces or control characters")
    if url.startswith("/"):
        return _local(url, shown)
    if "://" not in url:
        return _scp(url, shown)
    parts = urlsplit(url)
    try:
        port = parts.port or 0
    except ValueError:
        raise RepositoryAddressError(shown, "has a port that is not a number") from None
    if parts.scheme == "file":
        return _local(unquote(parts.path), shown)
    host = parts.hostname or ""
    if parts.scheme not in ("http", "https", "ssh") or not host or host.startswith("-") or parts.path in ("", "/"):
        raise RepositoryAddressError(shown, "has no host, no path, or a transport that is not supported")
    where = f"[{host}]" if ":" in host else host
    netloc = f"{where}:{port}" if port else where
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if parts.scheme == "ssh":
        if user.startswith("-") or parts.path.startswith("/-"):
            raise RepositoryAddressError(shown, "has a user or path that begins with '-'")
        at = f"{user}@" if user else ""
        return Address(f"ssh://{at}{netloc}{parts.path}", "ssh", host, port or 22)
    scheme: Transport = "https" if parts.scheme == "https" else "http"
    default = 443 if scheme == "https" else 80
    return Address(f"{scheme}://{netloc}{parts.path.rstrip('/')}", scheme, host, port or default, user, password)


def _local(path: str, shown: str) -> Address:
    if not path.startswith("/") or ".." in Path(path).parts:
        raise RepositoryAddressError(shown, "is not an absolute folder without '..'")
    return Address(f"file://{Path(path)}", "file")


def _scp(url: str, shown: str) -> Address:
    match = _SCP.match(url)
    if match is None or "::" in url or match["path"].startswith("-"):
        raise RepositoryAddressError(shown, "is not a supported form")
    return Address(url, "ssh", match["host"], 22)
