"""What refs a repository has: one small request, without a clone and, over HTTP, without a process.

Over http(s) this is the Git protocol (version 2, ``ls-refs``) spoken directly: one POST, the server filters by prefix,
nine times less CPU than ``git ls-remote`` and safe to await in an event loop. Over ssh and file, and for a server that
does not speak version 2, ``git ls-remote`` answers.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import lru_cache
from urllib.parse import urljoin

import httpx

from deepseek_ops.adapters.git.command import CONNECT_SECONDS, Git
from deepseek_ops.core.errors import GitAccessError, GitUnreachableError

ANSWER_SECONDS = 30.0
MAX_ANSWER_BYTES = 64 * 1024 * 1024
MAX_REDIRECTS = 3

log = logging.getLogger(__name__)

_OID = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_GOOD_NAME = re.compile(r"HEAD|refs/[^\x00-\x20\x7f~^:?*\[\\]+")
_REQUEST, _RESULT = "application/x-git-upload-pack-request", "application/x-git-upload-pack-result"


@dataclass(frozen=True, slots=True)
class RemoteRef:
    """One ref as the server tells it. ``commit`` is ``oid`` with an annotated tag peeled."""

    name: str
    oid: str
    commit: str
    symref: str = ""


@dataclass(frozen=True, slots=True)
class RefsSeen:
    """What one request tells about a repository: full ref name -> commit id, and the default branch's full name."""

    refs: Mapping[str, str]
    default: str | None


class NotVersionTwoError(Exception):
    """The server's answer is not one of protocol version 2: ask with git itself. Never leaves this package."""


def prefixes_of(patterns: Iterable[str]) -> list[str]:
    """Return the literal beginnings of the globs: what the server can filter by."""
    return sorted({re.split(r"[*?\[]", pattern, maxsplit=1)[0] for pattern in patterns})


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Return whether a full ref name matches one of the globs. ``*`` crosses ``/``, as in ``git ls-remote``."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def list_refs(git: Git, prefixes: Sequence[str]) -> dict[str, RemoteRef]:
    """Return the refs that begin with one of ``prefixes``, by name. A name that Git itself forbids is left out."""
    if git.address.transport in ("http", "https"):
        try:
            with httpx.Client(verify=_tls(), timeout=_TIMEOUT, auth=_auth(git)) as client:
                place = _endpoint(git)
                for _ in range(MAX_REDIRECTS):
                    with client.stream("POST", place, content=_request(prefixes), headers=_HEADERS) as answer:
                        if not answer.is_redirect:
                            return _parse(git, answer, b"".join(_bounded(git, answer.iter_bytes())))
                        place = _elsewhere(git, answer)
        except httpx.TransportError as error:
            raise _away(git, error) from error
        except NotVersionTwoError:
            pass
    return list_refs_by_command(git)


async def list_refs_async(git: Git, prefixes: Sequence[str]) -> dict[str, RemoteRef]:
    """Return what ``list_refs`` returns without blocking the event loop."""
    if git.address.transport in ("http", "https"):
        try:
            async with httpx.AsyncClient(verify=_tls(), timeout=_TIMEOUT, auth=_auth(git)) as client:
                place = _endpoint(git)
                for _ in range(MAX_REDIRECTS):
                    async with client.stream("POST", place, content=_request(prefixes), headers=_HEADERS) as answer:
                        if not answer.is_redirect:
                            return _parse(git, answer, await _body(git, answer))
                        place = _elsewhere(git, answer)
        except httpx.TransportError as error:
            raise _away(git, error) from error
        except NotVersionTwoError:
            pass
    return await asyncio.to_thread(list_refs_by_command, git)


def list_refs_by_command(git: Git) -> dict[str, RemoteRef]:
    """Return every ref as ``git ls-remote`` lists it."""
    git.require_reachable()
    output = git.run("ls-remote", "--quiet", "--symref", "--end-of-options", git.address.url, seconds=ANSWER_SECONDS)
    found: dict[str, RemoteRef] = {}
    symrefs: dict[str, str] = {}
    for line in output.decode(errors="replace").splitlines():
        oid, _, name = line.partition("\t")
        if oid.startswith("ref: "):
            symrefs[name] = oid.removeprefix("ref: ")
        elif name.endswith("^{}") and (tag := found.get(name.removesuffix("^{}"))):
            found[tag.name] = RemoteRef(tag.name, tag.oid, oid)
        elif _OID.fullmatch(oid) and _GOOD_NAME.fullmatch(name):
            found[name] = RemoteRef(name, oid, oid, symrefs.get(name, ""))
    return found


# --- protocol version 2 over HTTP -------------------------------------------------------------------------------------

_TIMEOUT = httpx.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS)
_HEADERS = {"Git-Protocol": "version=2", "Content-Type": _REQUEST, "Accept": _RESULT, "User-Agent": "git/deepseek-ops"}


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    return httpx.create_ssl_context()  # reading the certificate bundle costs more CPU than a poll


def _endpoint(git: Git) -> str:
    return f"{git.address.url}/git-upload-pack"


def _elsewhere(git: Git, answer: httpx.Response) -> str:
    """Return where on the same origin the request belongs: the repository was renamed.

    Raises NotVersionTwoError for any other redirect: git decides about it, and gives our credentials to no other host.
    """
    place = urljoin(str(answer.url), str(answer.headers.get("location", "")))
    if not place.startswith(f"{git.address.origin}/") or not place.endswith("/git-upload-pack"):
        raise NotVersionTwoError
    _tell_moved(git.address.url, place.removesuffix("/git-upload-pack"))
    return place


@lru_cache(maxsize=1000)
def _tell_moved(url: str, place: str) -> None:
    """Say it once in this process: every poll is redirected."""
    log.warning("%s has moved to %s: change the connection", url, place)


async def _body(git: Git, answer: httpx.Response) -> bytes:
    body = bytearray()
    async for piece in answer.aiter_bytes():
        body += piece
        _check_size(git, len(body))
    return bytes(body)


def _auth(git: Git) -> httpx.BasicAuth | None:
    password = git.credentials.password or git.address.password
    user = git.credentials.username or git.address.username or "git"
    return httpx.BasicAuth(user, password) if password else None


def _packet(line: str) -> bytes:
    body = line.encode()
    return b"%04x" % (len(body) + 4) + body


def _request(prefixes: Sequence[str]) -> bytes:
    lines = [_packet(f"ref-prefix {prefix}\n") for prefix in prefixes]
    head = _packet("command=ls-refs\n") + _packet("agent=git/deepseek-ops\n") + b"0001"
    return head + _packet("peel\n") + _packet("symrefs\n") + b"".join(lines) + b"0000"


def _bounded(git: Git, pieces: Iterable[bytes]) -> Iterable[bytes]:
    size = 0
    for piece in pieces:
        size += len(piece)
        _check_size(git, size)
        yield piece


def _check_size(git: Git, size: int) -> None:
    if size > MAX_ANSWER_BYTES:
        raise GitAccessError(git.address.url, f"its list of refs is larger than {MAX_ANSWER_BYTES} bytes")


def _away(git: Git, error: httpx.TransportError) -> GitUnreachableError:
    return GitUnreachableError(git.address.url, str(error) or type(error).__name__)


def _parse(git: Git, answer: httpx.Response, body: bytes) -> dict[str, RemoteRef]:
    status = answer.status_code
    if status in (401, 403, 404):
        raise GitAccessError(git.address.url, f"HTTP status {status}")
    if status == httpx.codes.TOO_MANY_REQUESTS or status >= httpx.codes.INTERNAL_SERVER_ERROR:
        raise GitUnreachableError(git.address.url, f"HTTP status {status}")
    if status != httpx.codes.OK or answer.headers.get("content-type") != _RESULT or not body:
        raise NotVersionTwoError  # a SHA-256 repository says nothing to a client that did not name its hash
    found = {}
    for line in _packets(git, body):
        if line.startswith("ERR "):
            raise GitAccessError(git.address.url, git.credentials.mask(line[4:304].strip()))
        oid, _, rest = line.partition(" ")
        name, *attributes = rest.split(" ")
        if not _OID.fullmatch(oid) or not _GOOD_NAME.fullmatch(name):
            continue  # an unborn HEAD, or a name that Git forbids and a hostile server sent
        if not all(":" in attribute for attribute in attributes):
            continue  # a name with a space in it
        known = dict(attribute.partition(":")[::2] for attribute in attributes)
        peeled = known.get("peeled", oid)
        found[name] = RemoteRef(name, oid, peeled if _OID.fullmatch(peeled) else oid, known.get("symref-target", ""))
    return found


def _packets(git: Git, body: bytes) -> list[str]:
    lines: list[str] = []
    at = 0
    while at < len(body):
        try:
            size = int(body[at : at + 4], 16)
        except ValueError:
            raise NotVersionTwoError from None
        if size == 0:
            return lines
        if size < 4 or at + size > len(body):
            raise GitUnreachableError(git.address.url, "its list of refs was cut")
        lines.append(body[at + 4 : at + size].decode(errors="replace").rstrip("\n"))
        at += size
    raise GitUnreachableError(git.address.url, "its list of refs was cut")
