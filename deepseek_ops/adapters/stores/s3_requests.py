"""The few S3 requests obstore does not offer: multipart uploads to go on with, and deletions reported key by key.

Requests are signed here (SigV4, headers), because obstore signs no query parameters and the base install has no boto3:
a training worker, which sends the largest files, installs none. Every body carries its SHA-256 twice, in the signature
and as a checksum that the server keeps.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit
from xml.etree import ElementTree as ET

from deepseek_ops.adapters.stores.failures import TRANSIENT_CODES, code_of
from deepseek_ops.adapters.stores.pace import BUSY_STATUS, BUSY_TRIES, Pace, jittered
from deepseek_ops.core.errors import StoreAccessError, StoreUnavailableError

if TYPE_CHECKING:
    import httpx

CHUNK_BYTES = 1 << 20
AGAIN_SECONDS = 0.2
_SAFE = "-_.~"
_ERROR = re.compile(rb"\s*(<\?xml[^>]*>)?\s*<Error[\s>]")


@dataclass(frozen=True, slots=True, repr=False)
class S3Place:
    """Where a bucket is and with which keys; has no ``repr``, so that nothing shows them."""

    base: str
    """URL of the bucket, without a slash at its end."""
    region: str
    key: str
    secret: str
    token: str = ""


def signature_headers(
    place: S3Place, method: str, url: str, headers: Mapping[str, str], payload_sha256: str, now: datetime
) -> dict[str, str]:
    """Return ``headers`` and those that sign the request, per AWS Signature Version 4.

    ``url`` is encoded already, its query parameters sorted.
    """
    parts = urlsplit(url)
    stamp = now.strftime("%Y%m%dT%H%M%SZ")
    signed = {
        **{name.lower(): value for name, value in headers.items()},
        "host": parts.netloc,
        "x-amz-content-sha256": payload_sha256,
        "x-amz-date": stamp,
        **({"x-amz-security-token": place.token} if place.token else {}),
    }
    names = ";".join(sorted(signed))
    lines = [method, parts.path or "/", parts.query, *(f"{name}:{signed[name].strip()}" for name in sorted(signed))]
    canonical = "\n".join([*lines, "", names, payload_sha256])
    scope = f"{stamp[:8]}/{place.region}/s3/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()])
    key = f"AWS4{place.secret}".encode()
    for word in scope.split("/"):
        key = hmac.new(key, word.encode(), hashlib.sha256).digest()
    proof = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    credential = f"AWS4-HMAC-SHA256 Credential={place.key}/{scope}, SignedHeaders={names}, Signature={proof}"
    return {**signed, "authorization": credential}


def encoded_url(base: str, path: str, query: Mapping[str, str]) -> str:
    """Return the URL of an object, encoded as the signature wants it."""
    parameters = sorted((quote(name, safe=_SAFE), quote(value, safe=_SAFE)) for name, value in query.items())
    tail = "&".join(f"{name}={value}" for name, value in parameters)
    return f"{base}/{quote(path, safe=_SAFE + '/')}" + (f"?{tail}" if tail else "")


class S3Requests:
    """Signed requests to one bucket over kept connections. Safe for use by many threads."""

    def __init__(self, uri: str, place: S3Place, pace: Pace, *, connect_seconds: float, read_seconds: float) -> None:
        self.uri = uri
        self._place = place
        self._pace = pace
        self._seconds = (connect_seconds, read_seconds)

    @cached_property
    def _http(self) -> httpx.Client:
        import httpx  # most processes never need it: it costs more than the whole adapter

        connect, read = self._seconds
        # A proxy of the environment is for the outside; what is reached in clear text is on this machine or beside it.
        direct = self._place.base.startswith("http://")
        return httpx.Client(timeout=httpx.Timeout(read, connect=connect), trust_env=not direct)

    def send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: bytes = b"",
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """Return the answer to a request that may be sent twice: success, or a refusal that names the object's state.

        Raises StoreUnavailableError after some tries, StoreAccessError for refused credentials or bucket; other 4xx
        come back to the caller.
        """
        url = encoded_url(self._place.base, path, query)
        digest = hashlib.sha256(body)
        wanted = dict(headers or {})
        if (body and "uploadId" not in query) or "partNumber" in query:  # a completion would mean the whole
            wanted["x-amz-checksum-sha256"] = b64encode(digest.digest()).decode()
        attempt = 0
        while True:
            outcome = self._try(method, url, body, wanted, digest.hexdigest())
            if not isinstance(outcome, str):
                return self._accepted(outcome)
            if attempt == BUSY_TRIES - 1:
                raise StoreUnavailableError(self.uri, outcome)
            self._wait(outcome, attempt)
            attempt += 1

    def _try(self, method: str, url: str, body: bytes, headers: Mapping[str, str], digest: str) -> httpx.Response | str:
        """Return an answer to act on, or what is wrong that another try may cure."""
        import httpx

        signed = signature_headers(self._place, method, url, headers, digest, datetime.now(UTC))
        if body or method in ("PUT", "POST"):
            signed["content-length"] = str(len(body))
        try:
            with self._pace.request():
                answer = self._http.request(method, url, headers=signed, content=_chunks(body) if body else None)
        except httpx.TransportError as error:
            return _meaning(error)
        late = answer.is_success and _ERROR.match(answer.content) is not None  # failed after its 200 was sent
        code = code_of(answer.text) if late or not answer.is_success else ""
        if late or answer.status_code in BUSY_STATUS or code in TRANSIENT_CODES:
            return f"HTTP {answer.status_code} {code}".rstrip()
        self._pace.went_well()
        return answer

    def _wait(self, problem: str, attempt: int) -> None:
        if any(str(status) in problem for status in BUSY_STATUS):
            self._pace.slow_down(attempt)
        else:
            time.sleep(jittered(AGAIN_SECONDS, attempt))

    def _accepted(self, answer: httpx.Response) -> httpx.Response:
        code = code_of(answer.text) if answer.status_code >= 300 else ""
        if code == "NoSuchBucket":
            raise StoreAccessError(self.uri, "the bucket does not exist (NoSuchBucket)")
        if answer.status_code in (301, 307, 401, 403, 405):
            raise StoreAccessError(self.uri, f"HTTP {answer.status_code} {code}".rstrip())
        return answer


def parsed_xml(answer: httpx.Response, uri: str) -> ET.Element:
    """Return the root of an answer. Raises StoreUnavailableError when it is no XML, or more than S3 sends."""
    try:
        if b"<!" in answer.content:
            raise StoreUnavailableError(uri, "the server's answer declares XML entities")
        return ET.fromstring(answer.content)  # noqa: S314 - no declarations, so nothing expands
    except ET.ParseError:
        raise StoreUnavailableError(uri, "the server's answer is no XML") from None


def _chunks(body: bytes) -> Iterator[bytes]:
    """Yield the body in pieces: what a socket does not take at once is copied, and that must not be all of it."""
    for start in range(0, len(body), CHUNK_BYTES):
        yield body[start : start + CHUNK_BYTES]


def _meaning(error: httpx.TransportError) -> str:
    import httpx

    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    if isinstance(error, httpx.ConnectError):
        return "connection refused" if "refused" in str(error).lower() else "no connection"
    return "the connection ended early"
