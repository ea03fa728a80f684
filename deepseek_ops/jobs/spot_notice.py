"""Notices that the machine is going to be taken away: the training checkpoints and ends before it is.

Clouds tell a spot machine some time before (AWS: two minutes) at an address that only the machine itself reaches. A
thread asks there every few seconds; 404 means that nothing is planned. ``DEEPSEEK_OPS_SPOT_NOTICE`` says where to ask:
``aws`` is the instance metadata service with a session token (IMDSv2, path ``spot/instance-action``), any other URL is
asked plainly, ``file:///path`` looks for a file that something else puts there, and nothing asks nobody.
"""

from __future__ import annotations

import logging
import os
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self
from urllib.parse import unquote, urlsplit

from deepseek_ops.core.errors import PermanentError
from deepseek_ops.core.jobs import JobCause

if TYPE_CHECKING:
    from deepseek_ops.jobs.context import JobContext

VARIABLE = "DEEPSEEK_OPS_SPOT_NOTICE"
AWS = "http://169.254.169.254"
POLL_SECONDS = 5.0
TIMEOUT_SECONDS = 2.0
TOKEN_SECONDS = 21600
_TOKEN_PATH, _NOTICE_PATH = "/latest/api/token", "/latest/meta-data/spot/instance-action"
_MAX_BYTES = 4096
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class SpotNoticeAddressError(PermanentError):
    """The variable that says where to ask for spot notices says something else."""

    value: str

    def __str__(self) -> str:
        return f"{VARIABLE}={self.value!r} is no place to ask; use aws, http://host/path or file:///path, or unset it."


class Response(Protocol):
    """What an opener gives back: a file that is also a context manager."""

    def read(self, size: int) -> bytes:
        """Return at most ``size`` bytes."""

    def __enter__(self) -> Response:
        """Return itself."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close it."""


Opener = Callable[[urllib.request.Request, float], Response]


def _opened(request: urllib.request.Request, seconds: float) -> Response:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # the address is the machine's own
    return opener.open(request, timeout=seconds)  # type: ignore[no-any-return]  # only http: see place_of


class HttpNotice:
    """Asks an address; with a token first where the service wants one."""

    def __init__(self, url: str, *, token_url: str = "", opener: Opener = _opened) -> None:
        self._url, self._token_url, self._open = url, token_url, opener
        self._token = ""

    def notice(self) -> str:
        """Return what the service announces; empty while nothing is. Raises OSError when it does not answer."""
        try:
            return self._asked()
        except urllib.error.HTTPError as error:
            if error.code == 401 and self._token_url:  # the token has expired
                self._token = ""
                return ""
            if error.code == 404:
                return ""
            raise

    def _asked(self) -> str:
        headers = {}
        if self._token_url:
            if not self._token:
                wanted = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
                self._token = self._text(urllib.request.Request(self._token_url, headers=wanted, method="PUT"))  # noqa: S310
            headers["X-aws-ec2-metadata-token"] = self._token
        return self._text(urllib.request.Request(self._url, headers=headers))  # noqa: S310

    def _text(self, request: urllib.request.Request) -> str:
        with self._open(request, TIMEOUT_SECONDS) as answer:
            return answer.read(_MAX_BYTES).decode("utf-8", "replace").strip()


@dataclass(frozen=True)
class FileNotice:
    """Looks for a file."""

    path: Path

    def notice(self) -> str:
        """Return what the file says, or that it is there; empty while it is not."""
        if not self.path.exists():
            return ""
        with self.path.open("rb") as file:
            return file.read(_MAX_BYTES).decode("utf-8", "replace").strip() or f"{self.path} is there"


def place_of(value: str, *, opener: Opener = _opened, aws: str = AWS) -> HttpNotice | FileNotice | None:
    """Return who is asked for notices; None for an empty value. Raises SpotNoticeAddressError."""
    if not value:
        return None
    if value == "aws":
        return HttpNotice(f"{aws}{_NOTICE_PATH}", token_url=f"{aws}{_TOKEN_PATH}", opener=opener)
    parts = urlsplit(value)
    if parts.scheme == "file" and parts.path:
        return FileNotice(Path(unquote(parts.path)))
    if parts.scheme in ("http", "https") and parts.hostname:
        return HttpNotice(value, opener=opener)
    raise SpotNoticeAddressError(value)


class SpotWatch:
    """Asks in a thread until there is a notice, and then once calls ``told`` with what it says. A context manager."""

    def __init__(
        self, place: HttpNotice | FileNotice | None, told: Callable[[str], None], *, seconds: float = POLL_SECONDS
    ) -> None:
        self._place, self._told, self._seconds = place, told, seconds
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def of(cls, context: JobContext, *, environment: Mapping[str, str] = os.environ) -> SpotWatch:
        """Return the watch of a rank: the first one on each machine asks, and has the training stop."""

        def told(notice: str) -> None:
            context.event("spot_notice", notice=notice)
            context.request_stop(f"spot notice: {notice}", JobCause.PREEMPTED)

        first = int(environment.get("LOCAL_RANK", context.rank)) == 0
        return cls(place_of(environment.get(VARIABLE, "")) if first else None, told)

    def __enter__(self) -> Self:
        if self._place is not None:
            self._thread = threading.Thread(target=self._run, args=(self._place,), name="spot-notice", daemon=True)
            self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self, place: HttpNotice | FileNotice) -> None:
        complained = False
        while not self._ended.is_set():
            try:
                if notice := place.notice():
                    self._told(notice)
                    return
            except (OSError, ValueError) as error:
                if not complained:
                    _log.warning("nobody answers where spot notices would come from: %s", error)
                complained = True
            self._ended.wait(self._seconds)
