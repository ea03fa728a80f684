"""Notices that the machine is going to be taken away: the training checkpoints and ends before it is.

Clouds tell a spot machine some time before, at an address that only the machine itself reaches. A thread asks there
every few seconds. ``DEEPSEEK_OPS_SPOT_NOTICE`` says where to ask:

==============  ======================================================================================================
``aws``         EC2's instance metadata with a session token (IMDSv2), ``spot/instance-action``: 404, or what is to
                come, two minutes before
``gcp``         Compute Engine's ``instance/preempted`` with ``Metadata-Flavor: Google``: FALSE or TRUE, 30 s before
``azure``       Scheduled Events with ``Metadata: true``: a JSON object whose ``Events`` may hold a ``Preempt`` or
                ``Terminate`` of this machine, told apart by its name from those of others in its set; 30 s before
another URL     asked plainly: 404 or an empty body, or the notice
``file:///x``   a file that something else puts there
nothing         nobody is asked
==============  ======================================================================================================

The protocols are those of "Spot Instance interruption notices" (Amazon EC2 user guide), "Create and manage Spot VMs"
(Compute Engine documentation) and "Scheduled Events for Linux VMs" (Azure documentation).
"""

from __future__ import annotations

import json
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
LINK_LOCAL = "http://169.254.169.254"
"""Where a machine of AWS or Azure finds its metadata."""
GCP = "http://metadata.google.internal"
POLL_SECONDS = 5.0
TIMEOUT_SECONDS = 2.0
TOKEN_SECONDS = 21600
_AWS_TOKEN, _AWS_NOTICE = "/latest/api/token", "/latest/meta-data/spot/instance-action"
_GCP_NOTICE = "/computeMetadata/v1/instance/preempted"
_AZURE_EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
_AZURE_NAME = "/metadata/instance/compute/name?api-version=2021-02-01&format=text"
_AZURE_TAKEN = frozenset({"Preempt", "Terminate"})
"""Types of events after which the machine is gone; Freeze, Reboot and Redeploy give it back."""
_MAX_BYTES = 65536
_MAX_CHARACTERS = 2000
"""Of a notice, in an event."""
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class SpotNoticeAddressError(PermanentError):
    """The variable that says where to ask for spot notices says something else."""

    value: str

    def __str__(self) -> str:
        return (
            f"{VARIABLE}={self.value!r} is no place to ask; use aws, gcp, azure, http://host/path or "
            "file:///path, or unset it."
        )


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


def _asked(url: str, opener: Opener, headers: Mapping[str, str], method: str = "GET") -> str:
    """Return what an address answers; empty where it answers 404. Raises OSError."""
    request = urllib.request.Request(url, headers=dict(headers), method=method)  # noqa: S310  (only http: see place_of)
    try:
        with opener(request, TIMEOUT_SECONDS) as answer:
            return answer.read(_MAX_BYTES).decode("utf-8", "replace").strip()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return ""
        raise


class Place(Protocol):
    """Somebody who knows whether the machine is going to be taken away."""

    def notice(self) -> str:
        """Return what is announced; empty while nothing is. Raises OSError or ValueError when nobody can tell."""


@dataclass(frozen=True)
class HttpNotice:
    """Asks an address that answers 404, or nothing, while there is nothing to say."""

    url: str
    opener: Opener = _opened

    def notice(self) -> str:
        """Return what the address answers."""
        return _asked(self.url, self.opener, {})


class AwsNotice:
    """Asks EC2, with a session token that is renewed when it has expired."""

    def __init__(self, host: str, opener: Opener = _opened) -> None:
        self._host, self._opener, self._token = host, opener, ""

    def notice(self) -> str:
        """Return the interruption that is announced, as JSON."""
        if not self._token:
            wanted = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
            self._token = _asked(f"{self._host}{_AWS_TOKEN}", self._opener, wanted, "PUT")
        try:
            return _asked(f"{self._host}{_AWS_NOTICE}", self._opener, {"X-aws-ec2-metadata-token": self._token})
        except urllib.error.HTTPError as error:
            if error.code != 401:
                raise
            self._token = ""
            return ""


@dataclass(frozen=True)
class GcpNotice:
    """Asks Compute Engine."""

    host: str
    opener: Opener = _opened

    def notice(self) -> str:
        """Return that the machine is preempted. Raises ValueError for an answer that is neither TRUE nor FALSE."""
        said = _asked(f"{self.host}{_GCP_NOTICE}", self.opener, {"Metadata-Flavor": "Google"})
        if said not in ("TRUE", "FALSE"):
            raise ValueError(f"{self.host}{_GCP_NOTICE} says {said[:100]!r}, not TRUE or FALSE")
        return "Compute Engine preempts this machine" if said == "TRUE" else ""


class AzureNotice:
    """Asks Azure, whose answer holds the events of other machines of the same set as well."""

    def __init__(self, host: str, opener: Opener = _opened) -> None:
        self._host, self._opener, self._name = host, opener, ""

    def notice(self) -> str:
        """Return the event after which this machine is gone, as JSON. Raises ValueError for what is no event list."""
        headers = {"Metadata": "true"}
        body = json.loads(_asked(f"{self._host}{_AZURE_EVENTS}", self._opener, headers) or "{}")
        events = body.get("Events", []) if isinstance(body, dict) else []
        taken = [one for one in events if isinstance(one, dict) and one.get("EventType") in _AZURE_TAKEN]
        if not taken:
            return ""
        self._name = self._name or _asked(f"{self._host}{_AZURE_NAME}", self._opener, headers)
        own = [one for one in taken if self._name in one.get("Resources", [])]
        return json.dumps(own[0], ensure_ascii=False) if own else ""


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


def place_of(value: str, *, opener: Opener = _opened, host: str = "") -> Place | None:
    """Return who is asked for notices; None for an empty value. Raises SpotNoticeAddressError.

    ``host`` stands in for the address of a cloud's metadata.
    """
    if not value:
        return None
    if value == "aws":
        return AwsNotice(host or LINK_LOCAL, opener)
    if value == "gcp":
        return GcpNotice(host or GCP, opener)
    if value == "azure":
        return AzureNotice(host or LINK_LOCAL, opener)
    parts = urlsplit(value)
    if parts.scheme == "file" and parts.path:
        return FileNotice(Path(unquote(parts.path)))
    if parts.scheme in ("http", "https") and parts.hostname:
        return HttpNotice(value, opener)
    raise SpotNoticeAddressError(value)


class SpotWatch:
    """Asks in a thread until there is a notice, and then once calls ``told`` with what it says. A context manager."""

    def __init__(self, place: Place | None, told: Callable[[str], None], *, seconds: float = POLL_SECONDS) -> None:
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

    def _run(self, place: Place) -> None:
        complained = False
        while not self._ended.is_set():
            try:
                if notice := place.notice():
                    self._told(notice[:_MAX_CHARACTERS])
                    return
            except (OSError, ValueError) as error:
                if not complained:
                    _log.warning("nobody answers where spot notices would come from: %s", error)
                complained = True
            self._ended.wait(self._seconds)
